"""AGLA: logits for the whole image plus those for the parts of it that the question is about.

Source: An et al., "Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of Global and Local
Attention", CVPR 2025 (arXiv 2406.12718); assembly and defaults as in the released code, the parts found otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.contrastive import ContrastSession, check_range, cut, details
from limelight.decoding.generation_options import refuse
from limelight.decoding.instruments import masked_media, refuse_cross_attention
from limelight.decoding.own_relevance import OwnRelevance
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.decoding.streams import second_stream


@dataclass(frozen=True)
class Agla(Method):
    """``l + alpha l'`` with the plausibility cut on ``l``; ``l'`` from the media's most relevant positions alone.

    Args:
        alpha: weight of the local view; 0 is the unchanged model.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        kept: share of the media's positions that the local view keeps, in (0, 1]: those with the highest relevance.

    Differs from the paper and from the released code (LLaVA-1.5, InstructBLIP; batch 1, sampling only): there a second
    model (BLIP, image-text matching) finds the parts: GradCAM of its match between image and question in one
    cross-attention layer, blurred, and as many pixels kept as half the similarity of the two says (``1 - sim / 2``; about
    0.8); the others are set to 0 and the image is encoded again. Here the model itself says what the question is about:
    the relevance (AttnLRP) of its own most likely first token at the media's merged positions, of which a fixed share
    is kept; the embeddings of the others are set to 0. So there is no second model, video and audio work, and what is
    assembled is the model with itself. There and here the logits grow by ``1 + alpha``, which sharpens sampling.
    """

    name = "agla"
    capabilities = Capabilities(batches=True, gradients=True, second_prompt=True, continues_cache=True, beams=True)

    alpha: float = 2.0
    beta: float = 0.5
    kept: float = 0.8

    def __post_init__(self) -> None:
        check_range("agla", "alpha", self.alpha, 0.0, hint="the released code: 2")
        check_range("agla", "beta", self.beta, 0.0, 1.0, hint="the released code: 0.5")
        check_range("agla", "kept", self.kept, 1e-6, 1.0, hint="about 0.8 in the released code")

    def session(self, context: GenerationContext) -> AglaSession:
        """Raises UnsupportedError on a cross-attention model."""
        return AglaSession(self, context)


class AglaSession(ContrastSession):
    def __init__(self, strategy: Agla, context: GenerationContext) -> None:
        refuse_cross_attention(context.adapter, "agla", "the media's positions in the prompt")
        refuse(context, "agla", "use_cache")
        context.require_prompt()
        super().__init__(
            context,
            second_stream(context),
            lambda real, local, _: assembled(real, local, strategy.alpha, strategy.beta),
        )
        self.strategy = strategy

    def next(self, tokens: Tensor | None) -> StepOutput:
        if tokens is not None:
            return super().next(tokens)
        plain = self.main.next(None)
        places = media_mask(self.context)
        with masked_media(self.context.adapter, ~places | self._relevant(plain.argmax(-1), places)):
            local = self.contrast.next(None)
        out = self.combine(plain, local, 1)
        return StepOutput(out, details(plain, out), unchanged=plain)

    def _relevant(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return a mask ``[B, T]`` of the media's positions with the highest relevance for ``tokens`` [B]."""
        own, out = OwnRelevance(self.context), torch.zeros_like(places)
        for row, token in enumerate(tokens.tolist()):
            scores = own.of(row, token, self.context.ids).scores.to(places.device)
            out[row] = most(scores[-places.shape[1] :], places[row], self.strategy.kept)
        return out


def most(scores: Tensor, places: Tensor, share: float) -> Tensor:
    """Return a mask ``[T]`` of the ``share`` of ``places`` [T] with the highest ``scores`` [T], at least one."""
    at = places.nonzero()[:, 0]
    count = max(1, round(share * len(at)))
    best = at[scores[at].topk(count).indices]
    return torch.zeros_like(places).index_fill(0, best, True)


def assembled(logits: Tensor, local: Tensor, alpha: float, beta: float) -> Tensor:
    """Compute ``l + alpha l'`` with the cut; ``alpha = 0`` returns ``logits`` without one."""
    if alpha == 0:
        return logits
    return cut(torch.where(torch.isneginf(logits), logits, logits + alpha * local), logits, beta)


agla = Agla
STRATEGIES = {"agla": Agla}
