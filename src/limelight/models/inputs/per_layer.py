"""A word's own inputs to every layer (Gemma 4, Gemma 3n: embeddings of the token id, one a layer), as leaves of relevance.

They come from token ids, so at a word they are leaves beside its embedding and their relevance is booked at that word:
the leaf is ``[B, T, D + L * P]``. At a position of media the id is only a placeholder's: what its table holds says
nothing of the picture or the sound, is a constant like a bias, and enters neither the media's relevance nor its
tangents. (What the media themselves send by this way, through the projection of the embeddings, counts as usual.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PerPosition:
    """A decoder argument ``[B, T, ...]`` that holds features of every position.

    Attributes:
        name: the argument. In a call's arguments it holds the constant part: zero, save at media.
        width: D, of the embeddings in front.
        shape: of the features of one position.
    """

    name: str
    width: int
    shape: tuple[int, ...]

    @property
    def where(self) -> str:
        return self.name

    def widened(self, embeds: Tensor) -> Tensor:
        """Embeddings ``[B, N, D]`` without features of their own, as wide as the others (the adapter's have them)."""
        missing = self.width + torch.Size(self.shape).numel() - embeds.shape[-1]
        return torch.nn.functional.pad(embeds, (0, missing))

    def opened(self, wide: Tensor, constant: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """``[B, T, D + n]`` -> the embeddings, and the decoder's argument."""
        features = wide[..., self.width :].reshape(*wide.shape[:2], *self.shape)
        return wide[..., : self.width], {self.name: features if constant is None else features + constant.to(features)}

    def spread(self, constant: Tensor, rows: int) -> Tensor:
        """A constant for the model's rows; nothing for those of tangents."""
        return torch.cat([constant, constant.new_zeros(rows - constant.shape[0], *constant.shape[1:])])

    def probe(self, embeds: Tensor, constant: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Some leaf and constant with which something enters."""
        count = torch.Size(self.shape).numel()
        first = embeds[..., : self.width]
        times = -(-count // self.width)
        return torch.cat([first, first.repeat(1, 1, times)[..., :count]], dim=-1), self.spread(constant, rows)


def find_per_position(
    embeds: Tensor, kwargs: Mapping[str, Any], media_mask: Tensor | None
) -> tuple[PerPosition, Tensor, Tensor] | None:
    """The door, the wide leaf and the constant part; None where no argument has features ``[B, T, ...]``."""
    for name, value in kwargs.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 3:
            continue
        if value.shape[:2] != embeds.shape[:2] or "mask" in name or "position" in name:
            continue
        value = value.detach()
        if media_mask is None or media_mask.shape != embeds.shape[:2]:
            media_mask = torch.zeros(embeds.shape[:2], dtype=torch.bool)
        constant = value * media_mask.to(value.device).reshape(*media_mask.shape, *[1] * (value.ndim - 2))
        door = PerPosition(name, int(embeds.shape[-1]), tuple(value.shape[2:]))
        return door, torch.cat([embeds, (value - constant).flatten(2).to(embeds)], dim=-1), constant
    return None


def per_layer_inputs(decoder: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Token ids ``[B, N]`` -> what the decoder's layers get of them ``[B, N, L, P]``; None where they get nothing."""
    lookup: Any = getattr(decoder, "get_per_layer_inputs", None)
    if lookup is None or not getattr(decoder.config, "hidden_size_per_layer_input", None):
        return None
    return lambda ids: lookup(ids)
