"""PAI: raise the last query's attention to the image, and guide away from the prompt without it.

Source: Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
ECCV 2024 (arXiv 2407.21771); formulas as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import media_mask, without
from limelight.decoding.contrastive import check_choice, check_layer_range, check_range, details, guided
from limelight.decoding.generation_options import refuse
from limelight.decoding.instruments import (
    DecoderHook,
    chosen_layers,
    hooked_attention,
    key_places,
    refuse_cross_attention,
)  # fmt: skip
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, Method, StepOutput
from limelight.decoding.streams import StreamSession, second_stream
from limelight.models.adapter import Adapter

PUBLISHED = (2, 31)  # of 32 layers, both included


@dataclass(frozen=True)
class Pai(Method):
    """Adds ``alpha |w|`` to the last query's pre-softmax scores ``w`` of the media; then ``s + (gamma - 1)(s - s')``.

    Args:
        alpha: how much the media's attention scores are raised; 0 leaves attention unchanged.
        gamma: guidance, at least 1; ``s'`` is the log-softmax without the media, with unraised attention. 1: no second
            prompt and no cut.
        beta: plausibility cut of the guidance, in [0, 1], measured on the raised run; 0 drops none.
        start, stop: layers (from 0) ``start <= layer < stop``; None: 2 and 32 of LLaVA-7B's 32, in proportion for other
            depths.
        first_token: ``released``: with guidance, attention is not raised in the prompt's forward, so that the boost acts
            from the second token on (in the released code, a flag that the guidance clears is first set after the
            prompt); ``boosted``: it is raised for the first token too, as in the paper. Without guidance both are equal.

    Differs from the paper: the first token of guided decoding, see ``first_token``.
    Differs from the released code (LLaVA-1.5, MiniGPT-4, Shikra; LLaMA attention copied): any model whose attention
    uses transformers' interface, batches of unequal prompts, video and audio. Scores are raised after masking, and masked
    ones stay masked. There guidance is a logits processor after generate()'s own; here processors act on the guided
    logits. There ``gamma=1`` with guidance enabled raises nothing at all; here it is no guidance. Its README passes gamma
    1.1 and alpha 0.2, as here; the scripts' own default is gamma 2. The logits keep the model's constant, so alpha 0 and
    gamma 1 return them unchanged. ``plain`` costs one more cached forward per token and is computed only if details are
    requested.
    """

    name = "pai"
    capabilities = Capabilities(batches=True, beams=True, second_prompt=True, continues_cache=True)

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    start: int | None = None
    stop: int | None = None
    first_token: str = "released"

    def __post_init__(self) -> None:
        check_range("pai", "alpha", self.alpha, 0.0, hint="the paper: 0.2 for LLaVA-1.5")
        check_range("pai", "gamma", self.gamma, 1.0, hint="the paper: 1.1; 1 is no guidance")
        check_range("pai", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        check_choice("pai", "first_token", self.first_token, ("released", "boosted"))
        check_layer_range("pai", self.start, self.stop, hint="the paper: 2 and 32")

    def session(self, context: GenerationContext) -> PaiSession:
        """Raises SettingError on layers that the model does not have, UnsupportedError on a cross-attention model."""
        return PaiSession(self, context)


class PaiSession(StreamSession):
    def __init__(self, strategy: Pai, context: GenerationContext) -> None:
        self.strategy = strategy
        adapter = context.adapter
        refuse_cross_attention(adapter, "pai")
        context.require_prompt(words_only=True)
        refuse(context, "pai", "use_cache", "prefill_chunk_size")
        self.layers = chosen_layers(adapter, PUBLISHED, strategy.start, strategy.stop, "pai")
        self.boost = Boost(adapter, media_mask(context), self.layers, strategy.alpha)
        self.contrast = without(context, media_mask(context)) if strategy.gamma > 1 else None
        self.plain = second_stream(context) if context.details else None
        super().__init__(context, self.contrast, self.plain)

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits = self._boosted(tokens)
        out = logits
        if self.contrast is not None:
            out = guided(logits, self.contrast.next(tokens), self.strategy.gamma - 1, self.strategy.beta)
        if self.plain is None:
            active = self.strategy.alpha > 0 or self.contrast is not None
            return StepOutput(out, (Detail(intervened=active),) * out.shape[0], unchanged=logits)
        return StepOutput(out, details(self.plain.next(tokens), out), unchanged=logits)

    def _boosted(self, tokens: Tensor | None) -> Tensor:
        late = self.contrast is not None and self.strategy.first_token == "released"
        if self.strategy.alpha == 0 or (tokens is None and late):
            self.boost.length = self.context.ids.shape[1]
            return self.main.next(tokens)
        self.boost.length = self.context.ids.shape[1] if tokens is None else self.boost.length + 1
        with hooked_attention(self.context.adapter, self.boost, self.layers):
            return self.main.next(tokens)


class Boost(DecoderHook):
    """Adds ``alpha |w|`` to the last query's attention scores ``w`` of the media, before the softmax."""

    def __init__(self, adapter: Adapter, places: Tensor, layers: set[int], alpha: float) -> None:
        super().__init__(adapter)
        self.places, self.layers, self.alpha = places, layers, alpha
        self.length = places.shape[1]

    def reached(self, keys: int) -> Tensor:
        """Return the mask ``[B, keys]`` of the keys whose scores are raised."""
        return key_places(self.places, keys, self.length)

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        if layer not in self.layers or not self.inside:
            return scores
        keys = self.reached(scores.shape[-1])[:, None]
        last = scores[..., -1, :]
        allowed = keys & (last > torch.finfo(last.dtype).min / 2)
        raised = torch.where(allowed, last + self.alpha * last.abs(), last)
        return torch.cat([scores[..., :-1, :], raised[..., None, :]], dim=-2)


pai = Pai
STRATEGIES = {"pai": Pai}
