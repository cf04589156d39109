"""What features that reach a decoder otherwise than by merged input embeddings have in common.

They are leaves of relevance like the embeddings. Those that a decoder takes in an argument of their own travel with the
embeddings in one tensor: behind them along the last axis (deepstack, inputs of the layers' own), or as further positions in
front of the prompt's (cross-attention states). Those that a decoder puts among the words itself (media marked by a position
mask), and ids that another table than the words' embeds (media vocabularies), end up in the embeddings.

One kind is one file of this folder that ends in ``KIND = SideFeatureKind(...)``; listing the folder finds it
(:func:`limelight.models.inputs.kinds.side_kinds`). The axes of its arguments are declared in
:mod:`limelight.models.inputs.decoder_inputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class SideFeatures(Protocol):
    """Features of one captured call, in an argument of the decoder's. ``leaf`` is ``[B, N + T, D']``, N = ``front``."""

    @property
    def name(self) -> str:
        """The decoder's argument that takes them; it is not among the call's own arguments."""
        ...

    @property
    def kept(self) -> tuple[str, ...]:
        """Arguments of the call that say where they go."""
        ...

    @property
    def front(self) -> int:
        """Positions of the leaf in front of the prompt's."""
        ...

    @property
    def entrance(self) -> object:
        """Hashable: what two calls must share for one check of the forward mode to hold for both."""
        ...

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All of the decoder's arguments, from the leaf of the whole prompt and the call's own arguments."""
        ...

    def step(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The same for one position of the prompt's own behind a cache."""
        ...

    def widened(self, embeds: Tensor) -> Tensor:
        """Embeddings ``[B, N, D]`` of text without features, as wide as the leaf."""
        ...

    def of_text(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Which of the arguments in ``kept`` a generated token needs."""
        ...

    def spread(self, kept: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """The arguments in ``kept`` for so many rows, of values and tangents."""
        ...

    def probe(self, leaf: Tensor, kept: Mapping[str, Any], rows: int) -> tuple[Tensor, dict[str, Any]]:
        """Some leaf with which something enters at every position, and the arguments in ``kept`` that let it, for rows."""
        ...


class Found(NamedTuple):
    """Features, the leaf that holds them, the call's other arguments, and who is seen of the positions in front."""

    features: SideFeatures
    leaf: Tensor
    kwargs: dict[str, Any]
    seen: Tensor | None = None


class Placed(NamedTuple):
    """Merged embeddings ``[B, T, D]``, and the call's other arguments."""

    embeds: Tensor
    kwargs: dict[str, Any]


Media = Callable[[], Tensor | None]  # bool [B, T], positions of media by their ids; asked for only where it is needed
Embedder = Callable[[Tensor, Tensor], Tensor]


def no_media() -> None:
    """Where nothing tells positions of media apart."""


@dataclass(frozen=True)
class SideFeatureKind:
    """A way by which features reach decoders otherwise than by merged input embeddings.

    Attributes:
        name: for messages.
        find: ``(embeds [B, T, D], arguments of a captured call, media) -> features``; None where the call has none.
        place: ``(decoder, arguments of its call) -> merged embeddings``, where the decoder itself is about to put media
            among the words; None where it is not.
        places: ``inputs of the model -> int64 [B, T]``, 1 where media stand, where the inputs themselves say so.
        embedder: ``(model, decoder) -> (ids [B, n], embeddings [B, n, D]) -> embeddings [B, n, D']``, for tokens that are
            not embedded by the words' table alone; None where they are.
        order: embedders are applied in ascending order, then by name.
    """

    name: str
    find: Callable[[Tensor, Mapping[str, Any], Media], Found | None] | None = None
    place: Callable[[Any, Mapping[str, Any]], Placed | None] | None = None
    places: Callable[[Mapping[str, Any]], Tensor | None] | None = None
    embedder: Callable[[nn.Module, nn.Module], Embedder | None] | None = None
    order: int = 0
