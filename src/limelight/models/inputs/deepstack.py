"""Features that enter a decoder by further doors than its input embeddings (deepstack: again in early layers).

They are leaves of relevance like the embeddings. Both travel as one tensor ``[B, T, (1 + n) * D]``: the embeddings, and
behind them along the last axis what enters at the same position by each of the n doors (zero where nothing does). So
input times gradient, summed over the last axis, books the relevance of every door at the position of its token, and
a tangent ``c_i x_i`` scales all that enters at i. Source: DeepStack (Meng et al., arXiv 2406.04334) for the doors;
relevance through all of them: the definition of input times gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Doors:
    """One argument of a decoder that carries features of some positions, for one or more layers.

    Attributes:
        name: the argument: a list, tuple or dict of features ``[N, D]``, N positions of the whole batch.
        where: the argument that says which positions these are: bool ``[B, T]`` or ``[B, T, 1]``.
        keys: the dict's keys, or None for a list.
        count: how many features a position gets.
        width: D.
    """

    name: str
    where: str
    keys: tuple[Any, ...] | None
    count: int
    width: int

    def widened(self, embeds: Tensor) -> Tensor:
        """Embeddings ``[B, N, D]`` of positions without further features, as wide as the others."""
        return torch.nn.functional.pad(embeds, (0, self.count * self.width))

    def spread(self, where: Tensor, rows: int) -> Tensor:
        """Which positions, for the rows of all blocks."""
        return where.repeat(rows // where.shape[0], *[1] * (where.ndim - 1))

    def probe(self, embeds: Tensor, where: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Some leaf and mask with which something enters by every door."""
        leaf = embeds[..., : self.width].repeat(1, 1, 1 + self.count)
        return leaf, torch.ones_like(self.spread(where, rows))

    def opened(self, wide: Tensor, where: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """``[B, T, (1 + n) * D]`` -> the embeddings, and the decoder's arguments; no arguments where nothing enters."""
        first, *parts = torch.split(wide, self.width, dim=-1)
        if where is None or not bool(where.any()):
            return first, {}
        here = where if where.ndim == 2 else where[..., 0]
        features = [part[here] for part in parts]
        named = features if self.keys is None else dict(zip(self.keys, features, strict=True))
        return first, {self.name: named, self.where: where}


def find_doors(embeds: Tensor, kwargs: Mapping[str, Any]) -> tuple[Doors, Tensor] | None:
    """The doors among a decoder's arguments and the wide leaf; None where there are none of this kind.

    Told by shape: tensors ``[N, D]``, D the embeddings' width, N the number of True entries of exactly one mask.
    """
    masks = {k: v for k, v in kwargs.items() if _marks_positions(v, embeds)}
    for name, value in kwargs.items():
        keys = tuple(value) if isinstance(value, Mapping) else None
        parts = list(value.values()) if isinstance(value, Mapping) else value
        if not isinstance(parts, (list, tuple)) or not parts or not all(_is_features(p, embeds) for p in parts):
            continue
        counts = {int(p.shape[0]) for p in parts}
        fitting = [k for k, mask in masks.items() if counts == {int(mask.sum())}]
        if len(fitting) != 1:
            continue
        here = masks[fitting[0]]
        here = here if here.ndim == 2 else here[..., 0]
        wide = embeds.new_zeros(len(parts), *embeds.shape)
        for layer, part in zip(wide, parts, strict=True):
            layer[here] = part.detach().to(embeds)
        doors = Doors(name, fitting[0], keys, len(parts), int(embeds.shape[-1]))
        return doors, torch.cat([embeds, *wide], dim=-1)
    return None


def _is_features(value: Any, embeds: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 2
        and value.shape[-1] == embeds.shape[-1]
    )


def _marks_positions(value: Any, embeds: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.dtype != torch.bool or value.shape[:2] != embeds.shape[:2]:
        return False
    return value.ndim == 2 or (value.ndim == 3 and value.shape[-1] == 1)
