"""All kinds of features besides the embeddings, found by listing this folder, and functions that query all of them."""

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
    """Return the ``KIND`` of each file of ``inputs/``, in ascending order."""
    names = (
        info.name for info in pkgutil.iter_modules(inputs.__path__) if f"{inputs.__name__}.{info.name}" != __name__
    )
    files = [importlib.import_module(f"{inputs.__name__}.{name}") for name in names]
    found = [file.KIND for file in files if hasattr(file, "KIND")]
    return tuple(sorted(found, key=lambda kind: (kind.order, kind.name)))


def find(embeds: Tensor, kwargs: Mapping[str, Any], media: Media) -> Found | None:
    """Find the features of a captured call that do not enter through its embeddings."""
    results = (kind.find(embeds, kwargs, media) for kind in side_kinds() if kind.find is not None)
    return next((found for found in results if found is not None), None)


def placed(decoder: nn.Module, kwargs: Mapping[str, Any]) -> Placed | None:
    """Return the merged embeddings of a decoder call in which the decoder itself inserts the media."""
    results = (kind.place(decoder, kwargs) for kind in side_kinds() if kind.place is not None)
    return next((found for found in results if found is not None), None)


def places(given: Mapping[str, Any]) -> Tensor | None:
    """Return int64 ``[B, T]``, 1 at media positions marked by the model's inputs, or None if they mark none."""
    results = (kind.places(given) for kind in side_kinds() if kind.places is not None)
    return next((found for found in results if found is not None), None)


def embedders(model: nn.Module, decoder: nn.Module) -> tuple[Embedder, ...]:
    """Return the functions applied, in order, to text embeddings before a decoder receives them."""
    results = (kind.embedder(model, decoder) for kind in side_kinds() if kind.embedder is not None)
    return tuple(found for found in results if found is not None)
