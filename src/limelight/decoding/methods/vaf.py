"""VAF (ClearSight): in the middle layers, text behind the image attends more to it, and less to what stands before it.

Source: Yin et al., "ClearSight: Visual Signal Enhancement for Object Hallucination Mitigation in Multimodal Large Language
Models", CVPR 2025; formula and settings as in the released code.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.contrastive import check_layer_range, check_range
from limelight.decoding.instruments import (
    DecoderHook,
    chosen_layers,
    hooked_attention,
    key_places,
    refuse_cross_attention,
)
from limelight.decoding.intervention import InterventionSession
from limelight.decoding.strategy import Capabilities, GenerationContext, Method

PUBLISHED = (9, 14)  # of 32 layers, both included: "i > 8 and i < 15" in the released code


@dataclass(frozen=True)
class Vaf(Method):
    """Multiplies pre-softmax scores of text behind the media: to the media by ``enhance``, to what is before by ``suppress``.

    Args:
        enhance: factor of the scores to the media, at least 1.
        suppress: factor of the scores to the positions in front of the first medium (the system prompt), in [0, 1].
        start, stop: layers (from 0) ``start <= layer < stop``; None: 9 and 15 of LLaVA-7B's 32, in proportion for other
            depths.

    With ``enhance=1`` and ``suppress=1`` it is the unchanged model. A factor moves a score away from zero or towards it:
    where a score is negative, ``enhance`` lowers the attention (PAI adds ``alpha |w|`` instead).

    Differs from the paper: its text was not at hand; what is here is the released code, in which all heads of these
    layers are changed. Differs from the released code (LLaVA-1.5; attention modules replaced, 35 + 576 positions written
    in): any model whose attention uses transformers' interface, any prompt, batches, video and audio. With several media
    in one prompt, the text behind the first is changed, and all media are enhanced. Its script passes 1.15 and 0.95, as
    here; its own defaults are 1 and 1.
    """

    name = "vaf"
    capabilities = Capabilities(batches=True, beams=True)

    enhance: float = 1.15
    suppress: float = 0.95
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        check_range("vaf", "enhance", self.enhance, 1.0, hint="the released script: 1.15")
        check_range("vaf", "suppress", self.suppress, 0.0, 1.0, hint="the released script: 0.95")
        check_layer_range("vaf", self.start, self.stop, hint="the released code: 9 and 15")

    def session(self, context: GenerationContext) -> VafSession:
        """Raises SettingError on layers that the model does not have, UnsupportedError on a cross-attention model."""
        return VafSession(self, context)


class VafSession(InterventionSession):
    def __init__(self, strategy: Vaf, context: GenerationContext) -> None:
        refuse_cross_attention(context.adapter, "vaf")
        super().__init__(context, "vaf", recompute=True)
        self.neutral = strategy.enhance == 1 and strategy.suppress == 1
        self.layers = chosen_layers(context.adapter, PUBLISHED, strategy.start, strategy.stop, "vaf")
        self.fusion = Fusion(context, self.layers, strategy.enhance, strategy.suppress)

    def acts(self) -> bool:
        return not self.neutral

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        self.fusion.length = self.length
        return nullcontext() if self.neutral else hooked_attention(self.context.adapter, self.fusion, self.layers)


class Fusion(DecoderHook):
    """Multiplies the scores of the queries behind the media."""

    def __init__(self, context: GenerationContext, layers: set[int], enhance: float, suppress: float) -> None:
        super().__init__(context.adapter)
        self.layers, self.enhance, self.suppress = layers, enhance, suppress
        self.media = media_mask(context)
        begun = self.media.cumsum(-1) > 0
        self.front, self.text = context.mask & ~begun, context.mask & begun & ~self.media
        self.length = self.media.shape[1]

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        if layer not in self.layers or not self.inside:
            return scores
        keys, queries = scores.shape[-1], scores.shape[-2]
        factor = torch.ones_like(scores[:, 0, 0])
        factor = torch.where(key_places(self.media, keys, self.length), self.enhance, factor)
        factor = torch.where(key_places(self.front, keys, self.length), self.suppress, factor)[:, None, None]
        if queries > 1:  # the prompt
            factor = torch.where(self.text[:, None, -queries:, None], factor, 1.0)
        return torch.where(scores > torch.finfo(scores.dtype).min / 2, scores * factor, scores)


vaf = Vaf
STRATEGIES = {"vaf": Vaf}
