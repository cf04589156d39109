"""Registry of decoding methods by name, built from the ``STRATEGIES`` table of every module in ``methods/``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from limelight.decoding.after import After
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError


@cache
def strategies() -> dict[str, Callable[..., Strategy]]:
    """Return a mapping from name to factory; factories take the settings as keywords."""
    found: dict[str, Callable[..., Strategy]] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent / "methods")]):
        module = importlib.import_module(f"limelight.decoding.methods.{info.name}")
        found.update(getattr(module, "STRATEGIES", {}))
    return dict(sorted(found.items()))


def strategy(name: str, **settings: Any) -> Strategy:
    """Create a strategy by name with settings; every strategy accepts ``after`` (:class:`limelight.decoding.after.After`).

    Raises:
        SettingError: unknown name or setting.
    """
    marker = settings.pop("after", None)
    known = strategies()
    if name not in known:
        raise SettingError(f"unknown strategy {name!r}", hint=f"one of {', '.join(known)}")
    try:
        made = known[name](**settings)
    except TypeError as error:
        raise SettingError(
            f"{name}: {error}", hint="see `limelight generate --help` or help(limelight.lime)"
        ) from error
    return made if marker is None else After(made, marker)
