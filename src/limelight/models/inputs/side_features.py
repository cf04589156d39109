"""Base class and kinds of features that reach a decoder other than through merged input embeddings.

They are leaves of relevance like the embeddings. Those with their own decoder argument are stored with the embeddings in
one tensor: appended along the last axis (deepstack, per-layer inputs), or as additional positions before the prompt's
(cross-attention states). Media that a decoder inserts itself (marked by a position mask), and ids embedded by another table
than the text's (media vocabularies), become part of the embeddings.

One kind is one file of this folder that ends in ``KIND = SideFeatureKind(...)``; listing the folder finds it
(:func:`limelight.models.inputs.kinds.side_kinds`). The axes of its arguments are declared in
:mod:`limelight.models.inputs.decoder_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limelight.models.inputs.decoder_inputs import DECODER


class SideFeatures:
    """Features of one captured call in their own decoder argument. ``leaf`` is ``[B, N + T, D']``, N = ``front``.

    Attributes:
        name: the decoder's argument that takes them; it is not among the call's own arguments.
    """

    name: str

    @property
    def kept(self) -> tuple[str, ...]:
        """Arguments of the call that determine their positions."""
        return ()

    @property
    def front(self) -> int:
        """Number of positions of the leaf before the prompt's."""
        return 0

    @property
    def leaf_width(self) -> int:
        """D', if it is larger than the embeddings' width."""
        return 0

    @property
    def entrance(self) -> object:
        """A hashable key; calls with equal keys share one check of the forward mode."""
        return self

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Build all decoder arguments from the leaf of the whole prompt and the call's other arguments."""
        raise NotImplementedError

    def step(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Build all decoder arguments for one position after a cache."""
        return self.arguments(leaf, kwargs)

    def widened(self, embeds: Tensor) -> Tensor:
        """Widen text embeddings ``[B, N, D]`` without features to the leaf's width."""
        missing = self.leaf_width - embeds.shape[-1]
        return torch.nn.functional.pad(embeds, (0, missing)) if missing > 0 else embeds

    def of_text(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments in ``kept`` that a generated token needs."""
        return {}

    def spread(self, kept: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Expand the arguments in ``kept`` to ``rows`` rows of values and tangents."""
        return DECODER.repeat(kept, rows)

    def probe(self, leaf: Tensor, kept: Mapping[str, Any], rows: int) -> tuple[Tensor, dict[str, Any]]:
        """Return a test leaf with features at every position, and the matching arguments in ``kept`` for ``rows`` rows."""
        return leaf, self.spread(kept, rows)


class Found(NamedTuple):
    """Features, their leaf, the call's other arguments, and the mask of attended positions before the prompt's."""

    features: SideFeatures
    leaf: Tensor
    kwargs: dict[str, Any]
    seen: Tensor | None = None


class Placed(NamedTuple):
    """Merged embeddings ``[B, T, D]``, and the call's other arguments."""

    embeds: Tensor
    kwargs: dict[str, Any]


Media = Callable[[], Tensor | None]  # bool [B, T], media positions by ids; evaluated lazily
Embedder = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SideFeatureKind:
    """A kind of features that reach decoders other than through merged input embeddings.

    Attributes:
        name: for messages.
        find: ``(embeds [B, T, D], arguments of a captured call, media) -> features``, or None if the call has none.
        place: ``(decoder, arguments of its call) -> merged embeddings``, or None if the decoder does not insert the media
            itself.
        places: ``inputs of the model -> int64 [B, T]``, 1 at media positions, or None if the inputs do not mark them.
        embedder: ``(model, decoder) -> (ids [B, n], embeddings [B, n, D]) -> embeddings [B, n, D']``, for tokens that
            need more than the text embedding table; None if no token does.
        order: embedders are applied in ascending order, then by name.
    """

    name: str
    find: Callable[[Tensor, Mapping[str, Any], Media], Found | None] | None = None
    place: Callable[[Any, Mapping[str, Any]], Placed | None] | None = None
    places: Callable[[Mapping[str, Any]], Tensor | None] | None = None
    embedder: Callable[[nn.Module, nn.Module], Embedder | None] | None = None
    order: int = 0
