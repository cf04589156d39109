"""Cross-attention states (Llama 3.2 Vision, encoder-decoders): media that are not among the prompt's positions.

They are leaves of relevance like the embeddings and precede them: a captured prompt of T tokens with N states has N + T
positions, the first N of which are the media's. Relevance, spans, tangents and masks all use this numbering. The prompt's
own placeholder (``<|image|>``) counts as text, since its embedding does not depend on the image. Offsets on keys and
values act on the states in the layers that attend to them.
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
from limelight.models.inputs.side_features import Found, Media, SideFeatureKind, SideFeatures
from limelight.models.runtime.attention import CROSS_ATTENTION, is_attention, number_of
from limelight.models.spans import tower_side
from limelight.types import MODALITIES, Modality, Region, Span

NAMES = ("cross_attention_states", STATES)


@dataclass(frozen=True)
class CrossAttentionStates(SideFeatures):
    """A decoder argument with the states that it attends to, stored at the first positions of the leaf.

    Attributes:
        name: the argument.
        count: number of states.
        masks: arguments that determine which states are attended to.
        width, words_width: widths of states and embeddings if they differ; the leaf has the larger one, and the narrower
            of the two is padded with zeros.
        kind: modality of the states (None: given by the prompt's placeholders).
        seconds: duration of audio per state.
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

    @property
    def leaf_width(self) -> int:
        return self.width or 0

    def of_text(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        return dict(kept)

    def arguments(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        states, words = leaf[:, : self.count, : self.width], leaf[:, self.count :, : self.words_width]
        if self.name == STATES:  # some decoders add positions to them in place
            states = states.clone()
        return {"inputs_embeds": words, self.name: states, **kwargs}

    def step(self, leaf: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Build the arguments of one position after the cache, which holds the states' keys and values. An encoder-decoder
        still needs states of the right shape."""
        if self.name == STATES:
            width = leaf.shape[-1] if self.width is None else self.width
            kwargs = {**kwargs, self.name: leaf.new_zeros(len(leaf), self.count, width)}
        return {"inputs_embeds": leaf[..., : self.words_width], **kwargs}

    def modality(self, ids: Tensor) -> Tensor:
        """Return the modalities ``[B, N + T]``, given those of the prompt ``[B, T]``, which determine the states'."""
        kind = ids.amax(dim=1, keepdim=True).clamp_min(1)
        if self.kind is not None:
            kind = torch.full_like(kind, MODALITIES.index(self.kind))
        return torch.cat([kind.expand(-1, self.count), torch.zeros_like(ids)], dim=1)

    def words(self, words: Sequence[str], kind: Modality = "image") -> tuple[str, ...]:
        return (*(f"<{kind}>" for _ in range(self.count)), *words)

    def spans(
        self, length: int, config: Any, kind: Modality = "image", prompt: Sequence[Span] = ()
    ) -> tuple[Span, ...]:
        """Return the spans of ``length`` positions; an image is split into tiles (a class state and a square grid) if the
        vision encoder's size matches.

        The regions of the ``prompt``'s own spans give the positions of the tiles in the images.
        """
        if kind == "audio":
            return (self._audio_span(prompt), Span(self.count, length, "text"))
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

    def _audio_span(self, prompt: Sequence[Span]) -> Span:
        interval = next((s.interval for s in prompt if s.interval is not None), None)
        return Span(0, self.count, "audio", None, self.seconds, interval=interval)


def _padded(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def find_cross_attention(embeds: Tensor, kwargs: Mapping[str, Any], media: Media = lambda: None) -> Found | None:
    """Find states ``[B or more, n, D]`` among the arguments and build the leaf ``[B, N + T, D]`` and the mask ``[B, N]`` of
    attended states; None if no argument contains states."""
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
        if mask.ndim == 4 and mask.shape[-1] == states.shape[1]:  # [B, 1, T, N], additive or True where attended to
            sees = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask != 0
            seen = sees.any(dim=2)[:, 0].expand_as(seen)
        elif mask.shape == seen.shape:
            seen = mask.to(seen.device) != 0
    widths = (own, width) if own != width else (None, None)
    found = CrossAttentionStates(name, int(states.shape[1]), masks, *widths)
    rest = {k: v for k, v in kwargs.items() if k != name}
    leaf = torch.cat([_padded(x, max(own, width)) for x in (states.to(embeds), embeds)], dim=1)
    return Found(found, leaf, rest, seen)


def _names(argument: str) -> tuple[str, ...]:
    declared = DECODER.declared(argument)
    return declared[0].names if declared else ()


def reading_layers(decoder: nn.Module, name: str) -> set[int]:
    """Return the numbers of the attention modules that attend to the states of argument ``name``."""
    found = set()
    for path, module in decoder.named_modules():
        layer = number_of(module)
        if layer is None or not is_attention(module):
            continue
        if path.endswith(CROSS_ATTENTION) if name == STATES else name in inspect.signature(module.forward).parameters:
            found.add(layer)
    return found


KIND = SideFeatureKind("cross-attention states", find=find_cross_attention)
