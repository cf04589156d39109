"""Deepstack features, which enter a decoder's early layers in addition to its input embeddings.

They are leaves of relevance like the embeddings. Both are stored in one tensor ``[B, T, (1 + n) * D]``: the embeddings,
followed along the last axis by the features entering each of n layers at the same position (zero where there are none).
Thus input times gradient, summed over the last axis, assigns all relevance to the token's position, and a tangent
``c_i x_i`` scales everything that enters at i. Source: DeepStack (Meng et al., arXiv 2406.04334) for the features;
relevance through all of them: the definition of input times gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.models.inputs.decoder_inputs import DECODER
from limelight.models.inputs.side_features import Found, Media, SideFeatureKind, SideFeatures


@dataclass(frozen=True)
class DeepstackFeatures(SideFeatures):
    """A decoder argument with features of some positions, for one or more layers.

    Attributes:
        name: the argument: a list, tuple or dict of features ``[N, D]``, N positions of the whole batch.
        where: the argument that masks these positions: bool ``[B, T]`` or ``[B, T, 1]``.
        keys: the dict's keys, or None for a list.
        count: number of features per position.
        width: D.
    """

    name: str
    where: str
    keys: tuple[Any, ...] | None
    count: int
    width: int

    @property
    def kept(self) -> tuple[str, ...]:
        return (self.where,)

    @property
    def leaf_width(self) -> int:
        return (1 + self.count) * self.width

    def probe(self, leaf: Tensor, kept: Mapping[str, Any], rows: int) -> tuple[Tensor, dict[str, Any]]:
        everywhere = {k: torch.ones_like(v) for k, v in self.spread(kept, rows).items()}
        return leaf[..., : self.width].repeat(1, 1, 1 + self.count), everywhere

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Build the decoder's arguments, without features if no position has any."""
        first, *parts = torch.split(leaf, self.width, dim=-1)
        given = {"inputs_embeds": first, **{k: v for k, v in kwargs.items() if k != self.where}}
        where = kwargs.get(self.where)
        if where is None or not bool(where.any()):
            return given
        features = [part[_flat(where)] for part in parts]
        named = features if self.keys is None else dict(zip(self.keys, features, strict=True))
        return {**given, self.name: named, self.where: where}


def find_deepstack(embeds: Tensor, kwargs: Mapping[str, Any], media: Media = lambda: None) -> Found | None:
    """Find the features among a decoder's arguments and build the combined leaf; None if there are none of this kind.

    An argument declared as features matches if it contains tensors ``[N, D]``, D the embeddings' width, N the number of
    True entries of exactly one mask that is declared to mark positions.
    """
    masks = {k: v for k, v in kwargs.items() if DECODER.marks_media(k, v) and v.shape[:2] == embeds.shape[:2]}
    for name, value in kwargs.items():
        if not DECODER.is_features(name):
            continue
        keys = tuple(value) if isinstance(value, Mapping) else None
        parts = list(value.values()) if isinstance(value, Mapping) else value
        if not isinstance(parts, (list, tuple)) or not parts or not all(_is_features(p, embeds) for p in parts):
            continue
        counts = {int(p.shape[0]) for p in parts}
        fitting = [k for k, mask in masks.items() if counts == {int(mask.sum())}]
        if len(fitting) != 1:
            continue
        here = _flat(masks[fitting[0]])
        wide = embeds.new_zeros(len(parts), *embeds.shape)
        for layer, part in zip(wide, parts, strict=True):
            layer[here] = part.detach().to(embeds)
        found = DeepstackFeatures(name, fitting[0], keys, len(parts), int(embeds.shape[-1]))
        return Found(found, torch.cat([embeds, *wide], dim=-1), {k: v for k, v in kwargs.items() if k != name})
    return None


def _flat(where: Tensor) -> Tensor:
    """bool ``[B, T]``."""
    return where if where.ndim == 2 else where[..., 0]


def _is_features(value: Any, embeds: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 2
        and value.shape[-1] == embeds.shape[-1]
    )


KIND = SideFeatureKind("deepstack", find=find_deepstack)
