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
from limelight.models.inputs.encoder_decoder import STATES
from limelight.models.inputs.side_features import Found, Media, SideFeatureKind, no_media
from limelight.models.runtime.attention import CROSS_ATTENTION, is_attention, number_of
from limelight.models.spans import tower_side
from limelight.types import MODALITIES, Modality, Region, Span

NAMES = ("cross_attention_states", STATES)


@dataclass(frozen=True)
class CrossAttentionStates:
    """The decoder's argument ``name`` takes the first ``count`` positions of the leaf; ``masks``: who sees what of them.

    ``width`` of the states and of the ``words``, where the two differ: the leaf is as wide as the wider, with zeros behind
    the other. ``kind``: what they are of, where the prompt's own words do not say; ``seconds`` of sound that each stands
    for.
    """

    name: str
    count: int
    masks: tuple[str, ...]
    width: int | None = None
    words_width: int | None = None
    kind: Modality | None = None
    seconds: float | None = None

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
        return _padded(embeds, max(self.width or 0, embeds.shape[-1]))

    def of_text(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        return dict(kept)

    def spread(self, kept: Mapping[str, Any], rows: int) -> dict[str, Any]:
        return DECODER.repeat(kept, rows)

    def probe(self, leaf: Tensor, kept: Mapping[str, Any], rows: int) -> tuple[Tensor, dict[str, Any]]:
        return leaf, self.spread(kept, rows)

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        states, words = leaf[:, : self.count, : self.width], leaf[:, self.count :, : self.words_width]
        if self.name == STATES:  # some decoders add positions to them in place
            states = states.clone()
        return {"inputs_embeds": words, self.name: states, **kwargs}

    def step(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keys and values of the states are in the cache; an encoder-decoder only asks whether there are any."""
        if self.name == STATES:
            width = leaf.shape[-1] if self.width is None else self.width
            kwargs = {**kwargs, self.name: leaf.new_zeros(len(leaf), self.count, width)}
        return {"inputs_embeds": leaf[..., : self.words_width], **kwargs}

    def modality(self, ids: Tensor) -> Tensor:
        """Modalities ``[B, N + T]`` from those of the words ``[B, T]``, which say what the states are of."""
        kind = ids.amax(dim=1, keepdim=True).clamp_min(1)
        if self.kind is not None:
            kind = torch.full_like(kind, MODALITIES.index(self.kind))
        return torch.cat([kind.expand(-1, self.count), torch.zeros_like(ids)], dim=1)

    def words(self, words: Sequence[str], kind: Modality = "image") -> tuple[str, ...]:
        return (*(f"<{kind}>" for _ in range(self.count)), *words)

    def spans(
        self, length: int, config: Any, kind: Modality = "image", prompt: Sequence[Span] = ()
    ) -> tuple[Span, ...]:
        """Spans of ``length`` positions: tiles of a class state and a square grid where the tower's size tells so.

        The regions of the ``prompt``'s own spans say where in the pictures the tiles lie.
        """
        if kind == "audio":
            return (self._sound(prompt), Span(self.count, length, "text"))
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

    def _sound(self, prompt: Sequence[Span]) -> Span:
        interval = next((s.interval for s in prompt if s.interval is not None), None)
        return Span(0, self.count, "audio", None, self.seconds, interval=interval)


def _padded(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def find_cross_attention(embeds: Tensor, kwargs: Mapping[str, Any], media: Media = no_media) -> Found | None:
    """The states ``[B or more, n, D]`` in front of the words as one leaf ``[B, N + T, D]``, and which of them any word
    sees ``[B, N]``; None where no argument has states."""
    batch, _, width = embeds.shape
    name = next((n for n in NAMES if kwargs.get(n) is not None), NAMES[0])
    value = kwargs.get(name)
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] % batch:
        return None
    own = value.shape[-1]
    if own != width and name != STATES:
        return None
    states = value.detach().reshape(batch, -1, own)
    masks = tuple(k for k, v in kwargs.items() if k != name and isinstance(v, Tensor) and "state" in _names(k))
    seen = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    for key in masks:
        mask = kwargs[key]
        if mask.ndim == 4 and mask.shape[-1] == states.shape[1]:  # [B, 1, T, N], additive or True where seen
            sees = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask != 0
            seen = sees.any(dim=2)[:, 0].expand_as(seen)
        elif mask.shape == seen.shape:
            seen = mask.to(seen.device) != 0
    apart = own != width
    found = CrossAttentionStates(name, int(states.shape[1]), masks, own if apart else None, width if apart else None)
    rest = {k: v for k, v in kwargs.items() if k != name}
    leaf = torch.cat([_padded(x, max(own, width)) for x in (states.to(embeds), embeds)], dim=1)
    return Found(found, leaf, rest, seen)


def _names(argument: str) -> tuple[str, ...]:
    declared = DECODER.declared(argument)
    return declared[0].names if declared else ()


def reading_layers(decoder: nn.Module, name: str) -> set[int]:
    """Numbers of the attention that takes the states."""
    found = set()
    for path, module in decoder.named_modules():
        layer = number_of(module)
        if layer is None or not is_attention(module):
            continue
        if path.endswith(CROSS_ATTENTION) if name == STATES else name in inspect.signature(module.forward).parameters:
            found.add(layer)
    return found


KIND = SideFeatureKind("cross-attention states", find=find_cross_attention)
