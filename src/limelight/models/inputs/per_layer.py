"""Per-layer inputs (Gemma 4, Gemma 3n: one embedding of the token id per layer), as leaves of relevance.

They are computed from token ids, so at a text position they are leaves beside its embedding, and their relevance is
assigned to that position: the leaf is ``[B, T, D + L * P]``. At a media position the id is only a placeholder: its table
entry does not depend on the media, is a constant like a bias, and is excluded from the media's relevance and tangents.
(The media's own contribution through the projection of the embeddings counts as usual.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.inputs.side_features import Embedder, Found, Media, SideFeatureKind, SideFeatures

NAME = "per_layer_inputs"


@dataclass(frozen=True)
class PerLayerInputs(SideFeatures):
    """A decoder argument ``[B, T, L, P]`` with features of every position for each of its L layers.

    Attributes:
        name: the argument. In a call's arguments it contains the constant part: zero except at media positions.
        width: D, the width of the embeddings before it.
        shape: of the features of one position.
    """

    name: str
    width: int
    shape: tuple[int, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def count(self) -> int:
        """Number of features per position."""
        return torch.Size(self.shape).numel()

    @property
    def leaf_width(self) -> int:
        return self.width + self.count

    def spread(self, kept: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Return the constants for the model's rows, and zeros for the tangents' rows."""
        return {k: torch.cat([v, v.new_zeros(rows - v.shape[0], *v.shape[1:])]) for k, v in kept.items()}

    def probe(self, leaf: Tensor, kept: Mapping[str, Any], rows: int) -> tuple[Tensor, dict[str, Any]]:
        first = leaf[..., : self.width]
        times = -(-self.count // self.width)
        probe = torch.cat([first, first.repeat(1, 1, times)[..., : self.count]], dim=-1)
        return probe, self.spread(kept, rows)

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        features = leaf[..., self.width :].reshape(*leaf.shape[:2], *self.shape)
        constant = kwargs.get(self.name)
        features = features if constant is None else features + constant.to(features)
        return {"inputs_embeds": leaf[..., : self.width], **kwargs, self.name: features}


def find_per_layer(embeds: Tensor, kwargs: Mapping[str, Any], media: Media = lambda: None) -> Found | None:
    """Build the combined leaf, leaving the constant part in the arguments; None if there are no per-layer inputs.

    ``media``: positions whose ids are placeholders.
    """
    value = kwargs.get(NAME)
    if not isinstance(value, Tensor) or value.ndim < 3 or value.shape[:2] != embeds.shape[:2]:
        return None
    value = value.detach()
    where = media()
    if where is None or where.shape != embeds.shape[:2]:
        where = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    constant = value * where.to(value.device).reshape(*where.shape, *[1] * (value.ndim - 2))
    found = PerLayerInputs(NAME, int(embeds.shape[-1]), tuple(value.shape[2:]))
    leaf = torch.cat([embeds, (value - constant).flatten(2).to(embeds)], dim=-1)
    return Found(found, leaf, {**kwargs, NAME: constant})


def per_layer_inputs(decoder: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return a function from token ids ``[B, N]`` to per-layer inputs ``[B, N, L, P]``, or None if there are none."""
    lookup: Any = getattr(decoder, "get_per_layer_inputs", None)
    if lookup is None or not getattr(decoder.config, "hidden_size_per_layer_input", None):
        return None
    return lambda ids: lookup(ids)


def embedder(model: nn.Module, decoder: nn.Module) -> Embedder | None:
    """Append the inputs of all layers to the text embeddings: ``[B, n, D]`` -> ``[B, n, D + L * P]``."""
    lookup = per_layer_inputs(decoder)
    return (
        None if lookup is None else lambda ids, embeds: torch.cat([embeds, lookup(ids).flatten(2).to(embeds)], dim=-1)
    )


KIND = SideFeatureKind(
    "per-layer inputs", find=find_per_layer, embedder=embedder, order=1
)  # changes the width: applied last
