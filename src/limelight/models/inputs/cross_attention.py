"""Media that a decoder reads by cross-attention (Llama 3.2 Vision): states beside the prompt, not among its positions.

They are leaves of relevance like the embeddings, and stand in front of them: a captured prompt of T words with N states
has N + T positions, the first N of them the media's. Relevance, spans, tangents and masks all count that way; the
prompt's own placeholder (``<|image|>``) is a word like others, since its embedding holds nothing of the picture. Offsets
on keys and values act on the states where a layer attends to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.inputs.decoder_inputs import DECODER
from limelight.models.inputs.side_features import Found, Media, SideFeatureKind, no_media
from limelight.models.spans import tower_side
from limelight.types import Modality, Region, Span

NAME = "cross_attention_states"


@dataclass(frozen=True)
class CrossAttentionStates:
    """The decoder's argument ``name`` takes the first ``count`` positions of the leaf; ``masks``: who sees what of them."""

    name: str
    count: int
    masks: tuple[str, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        return self.masks

    @property
    def front(self) -> int:
        return self.count

    @property
    def entrance(self) -> object:
        return (self.name, self.masks)

    def widened(self, embeds: Tensor) -> Tensor:
        return embeds

    def of_text(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        return dict(kept)

    def spread(self, kept: Mapping[str, Any], rows: int) -> dict[str, Any]:
        return DECODER.repeat(kept, rows)

    def probe(self, leaf: Tensor, kept: Mapping[str, Any], rows: int) -> tuple[Tensor, dict[str, Any]]:
        return leaf, self.spread(kept, rows)

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"inputs_embeds": leaf[:, self.count :], self.name: leaf[:, : self.count], **kwargs}

    def step(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keys and values of the states are in the cache."""
        return {"inputs_embeds": leaf, **kwargs}

    def modality(self, ids: Tensor) -> Tensor:
        """Modalities ``[B, N + T]`` from those of the words ``[B, T]``, which say what the states are of."""
        kind = ids.amax(dim=1, keepdim=True).clamp_min(1)
        return torch.cat([kind.expand(-1, self.count), torch.zeros_like(ids)], dim=1)

    def words(self, words: Sequence[str], kind: Modality = "image") -> tuple[str, ...]:
        return (*(f"<{kind}>" for _ in range(self.count)), *words)

    def spans(
        self, length: int, config: Any, kind: Modality = "image", prompt: Sequence[Span] = ()
    ) -> tuple[Span, ...]:
        """Spans of ``length`` positions: tiles of a class state and a square grid where the tower's size tells so.

        The regions of the ``prompt``'s own spans say where in the pictures the tiles lie.
        """
        side = tower_side(config)
        each = None if side is None else side * side + 1
        states: list[Span] = [Span(0, self.count, kind)]
        if side is not None and each is not None and self.count % each == 0:
            starts = range(0, self.count, each)
            regions: list[Region | None] = [
                replace(s.region, box=box, tiles=()) for s in prompt if s.region is not None for box in s.region.tiles
            ]
            regions = regions if len(regions) == len(starts) else [None] * len(starts)
            states = [
                s
                for at, region in zip(starts, regions, strict=True)
                for s in (Span(at, at + 1, kind), Span(at + 1, at + each, kind, (side, side), region=region))
            ]
        return (*states, Span(self.count, length, "text"))


def find_cross_attention(embeds: Tensor, kwargs: Mapping[str, Any], media: Media = no_media) -> Found | None:
    """The states ``[B or more, n, D]`` in front of the words as one leaf ``[B, N + T, D]``, and which of them any word
    sees ``[B, N]``; None where no argument has states of the embeddings' width."""
    batch, _, width = embeds.shape
    value = kwargs.get(NAME)
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[-1] != width or value.shape[0] % batch:
        return None
    states = value.detach().reshape(batch, -1, width)
    masks = tuple(k for k, v in kwargs.items() if k != NAME and isinstance(v, Tensor) and "state" in _names(k))
    seen = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    for key in masks:
        mask = kwargs[key]
        if mask.ndim == 4 and mask.shape[-1] == states.shape[1]:  # [B, 1, T, N], additive or True where seen
            sees = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask != 0
            seen = sees.any(dim=2)[:, 0].expand_as(seen)
    found = CrossAttentionStates(NAME, int(states.shape[1]), masks)
    rest = {k: v for k, v in kwargs.items() if k != NAME}
    return Found(found, torch.cat([states.to(embeds), embeds], dim=1), rest, seen)


def _names(argument: str) -> tuple[str, ...]:
    declared = DECODER.declared(argument)
    return declared[0].names if declared else ()


def reading_layers(decoder: nn.Module, name: str) -> set[int]:
    """Layers whose attention takes the states."""
    found = set()
    for module in decoder.modules():
        layer = getattr(module, "layer_idx", None)
        if layer is not None and hasattr(module, "k_proj") and name in inspect.signature(module.forward).parameters:
            found.add(int(layer))
    return found


KIND = SideFeatureKind("cross-attention states", find=find_cross_attention)
