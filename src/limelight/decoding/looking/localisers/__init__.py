"""Localisers: where to look again. Each returns one score per position, from the ``LOCALISERS`` table of every module here.

A localiser is a function ``Glance -> scores [R, T]``, signed or not; only media positions are used. A new one is a file in
this folder with a table ``LOCALISERS = {"name": Localiser(...)}``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from limelight.decoding.looking.glance import Glance


@dataclass(frozen=True)
class Localiser:
    """A way to say where to look.

    Attributes:
        scores: ``Glance -> [R, T]`` in float32 or wider.
        about: one line, with its source.
        gradients: runs a backward pass.
    """

    scores: Callable[[Glance], Tensor]
    about: str
    gradients: bool = False


@cache
def localisers() -> dict[str, Localiser]:
    """Return the localisers by name."""
    found: dict[str, Localiser] = {}
    for info in pkgutil.iter_modules(__path__):
        found.update(importlib.import_module(f"{__name__}.{info.name}").LOCALISERS)
    return dict(sorted(found.items()))
