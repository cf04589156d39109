"""IAT: raise the last query's attention to the text generated so far.

Source: Zhong et al., "AdaIAT: Adaptively Increasing Attention to Generated Text to Alleviate Hallucinations in LVLM",
CVPR 2026 (arXiv 2603.04908), whose simple form this is; formula and settings as in the released code.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_layer_range, check_range
from limelight.decoding.instruments import chosen_layers, hooked_attention, refuse_cross_attention
from limelight.decoding.intervention import InterventionSession, prompt_length
from limelight.decoding.methods.pai import Boost
from limelight.decoding.strategy import Capabilities, GenerationContext, Method

PUBLISHED = (5, 17)  # of 32 layers, both included: range(5, 18) in the released code


@dataclass(frozen=True)
class Iat(Method):
    """Adds ``alpha |w|`` to the last query's pre-softmax scores ``w`` of the answer's own positions, itself included.

    Args:
        alpha: how much attention to the answer is raised; 0 is the unchanged model.
        start, stop: layers (from 0) ``start <= layer < stop``; None: 5 and 18 of LLaVA-7B's 32, in proportion for other
            depths.

    The first token has no generated text before it and is the unchanged model's, so a one-word answer does not change.
    Works without media, too.

    Differs from the paper: nothing known. Its adaptive form (AdaIAT: per-layer thresholds and per-head magnitudes) needs
    statistics of true and hallucinated objects on thousands of captions and is not training-free in this sense; it is not
    here. Differs from the released code (LLaVA-1.5; LLaMA attention copied, prompt of 625 positions written in): any
    model whose attention uses transformers' interface, any prompt, batches.
    """

    name = "iat"
    capabilities = Capabilities(batches=True, needs_media=False, continues_cache=True, beams=True)

    alpha: float = 0.8
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        check_range("iat", "alpha", self.alpha, 0.0, hint="the released code: 0.8 for LLaVA-1.5")
        check_layer_range("iat", self.start, self.stop, hint="the paper: 5 and 18")

    def session(self, context: GenerationContext) -> IatSession:
        """Raises SettingError on layers that the model does not have, UnsupportedError on a cross-attention model."""
        return IatSession(self, context)


class IatSession(InterventionSession):
    def __init__(self, strategy: Iat, context: GenerationContext) -> None:
        refuse_cross_attention(context.adapter, "iat", "the attention between positions of one sequence")
        super().__init__(context, "iat", recompute=False)
        self.alpha = strategy.alpha
        self.layers = chosen_layers(context.adapter, PUBLISHED, strategy.start, strategy.stop, "iat")
        self.boost = Generated(context, self.layers, strategy.alpha)

    def acts(self) -> bool:
        return self.alpha > 0 and self.count > 0

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        self.boost.length = self.length
        return hooked_attention(self.context.adapter, self.boost, self.layers) if self.acts() else nullcontext()


class Generated(Boost):
    """PAI's change of the scores, at the answer's positions."""

    def __init__(self, context: GenerationContext, layers: set[int], alpha: float) -> None:
        super().__init__(context.adapter, context.mask, layers, alpha)
        self.prompt = prompt_length(context)

    def reached(self, keys: int) -> Tensor:
        """Return the mask ``[1, keys]`` of the answer's positions."""
        first = max(0, self.length - keys)  # a sliding window keeps the last keys, a static cache has room behind them
        at = torch.arange(first, first + keys, device=self.places.device)
        return ((at >= self.prompt) & (at < self.length))[None]


iat = Iat
STRATEGIES = {"iat": Iat}
