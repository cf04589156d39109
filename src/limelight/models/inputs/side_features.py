"""What features that reach a decoder beside its input embeddings have in common.

They are leaves of relevance like the embeddings and travel with them in one tensor: behind them along the last axis
(deepstack, inputs of the layers' own), or as further positions in front of the prompt's (cross-attention states). Media
that the decoder itself puts among the words (:mod:`limelight.models.inputs.position_mask`), and ids that other tables
embed (:mod:`limelight.models.inputs.media_vocabulary`), end up in the embeddings and need none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class SideFeatures(Protocol):
    """Features of one captured call. To add a kind, write its class and its ``find`` and list that in ``capture.FINDERS``."""

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
