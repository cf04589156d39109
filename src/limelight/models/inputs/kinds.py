"""Every kind of features beside the embeddings, found by listing this folder, and the questions that all of them are asked."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from limelight.models import inputs
from limelight.models.inputs.side_features import Embedder, Found, Media, Placed, SideFeatureKind


@cache
def side_kinds() -> tuple[SideFeatureKind, ...]:
    """The ``KIND`` of each file of ``inputs/``, in ascending order."""
    names = (
        info.name for info in pkgutil.iter_modules(inputs.__path__) if f"{inputs.__name__}.{info.name}" != __name__
    )
    files = [importlib.import_module(f"{inputs.__name__}.{name}") for name in names]
    found = [file.KIND for file in files if hasattr(file, "KIND")]
    return tuple(sorted(found, key=lambda kind: (kind.order, kind.name)))


def find(embeds: Tensor, kwargs: Mapping[str, Any], media: Media) -> Found | None:
    """The features of a captured call that do not enter by its embeddings."""
    asked = (kind.find(embeds, kwargs, media) for kind in side_kinds() if kind.find is not None)
    return next((found for found in asked if found is not None), None)


def placed(decoder: nn.Module, kwargs: Mapping[str, Any]) -> Placed | None:
    """The merged embeddings of a decoder's call, where the decoder itself is about to put media among the words."""
    asked = (kind.place(decoder, kwargs) for kind in side_kinds() if kind.place is not None)
    return next((found for found in asked if found is not None), None)


def places(given: Mapping[str, Any]) -> Tensor | None:
    """int64 ``[B, T]``, 1 where the model's inputs themselves say that media stand; None where they say nothing."""
    asked = (kind.places(given) for kind in side_kinds() if kind.places is not None)
    return next((found for found in asked if found is not None), None)


def embedders(model: nn.Module, decoder: nn.Module) -> tuple[Embedder, ...]:
    """What is done to the embeddings of words, in this order, before a decoder receives them."""
    asked = (kind.embedder(model, decoder) for kind in side_kinds() if kind.embedder is not None)
    return tuple(found for found in asked if found is not None)
