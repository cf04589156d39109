"""AvisC: contrast with the logits computed from the image tokens that attract attention regardless of the question.

Source: Woo et al., "Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language
Models", 2024 (arXiv 2405.17820); formulas as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.contrastive import ContrastSession, amplified, check_range
from limelight.decoding.generation_options import refuse
from limelight.decoding.instruments import (
    DecoderHook,
    hooked_attention,
    key_places,
    masked_media,
    refuse_cross_attention,
)
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.decoding.streams import second_stream
from limelight.models.adapter import Adapter


@dataclass(frozen=True)
class Avisc(Method):
    """``(1 + alpha) l - alpha l'``, ``l'`` from the over-attended ("blind") positions only; implausible tokens dropped.

    Blind positions are the media's positions whose attention from the prompt's last query (mean over heads and over the
    layers that attend to the media most) exceeds mean + ``lam`` standard deviations. The other embeddings are zeroed.

    Args:
        alpha: strength of the contrast; 0 is the unchanged model. The released scripts set 1 to 3 by model and benchmark.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        gamma: the layers that attend to the media most, and together have this share of all layers' attention to them,
            are averaged.
        lam: standard deviations above the mean.

    Differs from the paper: blind tokens are determined once, at the prompt, as in the released code (in the paper's text,
    at each token).
    Differs from the released code (LLaVA-1.5, InstructBLIP; sampling only): means and deviations are per batch row (there
    over the batch); the media's positions are detected (there fixed at 35 to 610 for LLaVA); ``lam`` is 1 as in its
    shell scripts (the POPE program's own default is 0.99); the other embeddings can only be zeroed (there also ones or
    noise); NaN in the second run raises an error (there the first run's logits replace them). Video, audio and greedy
    decoding are supported.
    """

    name = "avisc"
    capabilities = Capabilities(batches=True, beams=True, second_prompt=True, continues_cache=True)

    alpha: float = 1.0
    beta: float = 0.1
    gamma: float = 0.5
    lam: float = 1.0

    def __post_init__(self) -> None:
        check_range("avisc", "alpha", self.alpha, 0.0, hint="1 is the released code's default")
        check_range("avisc", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        check_range("avisc", "gamma", self.gamma, 0.0, 1.0, hint="the paper: 0.5")
        check_range("avisc", "lam", self.lam, float("-inf"), hint="the paper: 1")

    def session(self, context: GenerationContext) -> ContrastSession:
        """Raises UnsupportedError on a cross-attention model."""
        refuse_cross_attention(context.adapter, "avisc")
        refuse(context, "avisc", "use_cache")
        places = media_mask(context)
        record = Attended(context.adapter, places)
        return ContrastSession(
            context,
            second_stream(context),
            lambda real, other, _: amplified(real, other, self.alpha, self.beta),
            main_prefill=lambda: hooked_attention(context.adapter, record, context.adapter.attention_layers),
            contrast_prefill=lambda: masked_media(context.adapter, ~places | record.blind(self.gamma, self.lam)),
        )


class Attended(DecoderHook):
    """Records the last query's attention, averaged over heads, as ``[B, T]`` per layer."""

    def __init__(self, adapter: Adapter, places: Tensor) -> None:
        super().__init__(adapter)
        self.places = places
        self.weights: dict[int, Tensor] = {}

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        if not self.inside:
            return out
        length = self.places.shape[1]
        last = weights[..., -1, :].mean(dim=1).to(torch.promote_types(weights.dtype, torch.float32))
        padded = last.new_zeros(self.places.shape)
        keys = min(length, last.shape[-1])
        padded[:, length - keys :] = last[:, :keys]
        self.weights[layer] = padded * key_places(self.places, length, length)
        return out

    def blind(self, gamma: float, lam: float) -> Tensor:
        """Return a mask ``[B, T]`` of the media's over-attended positions."""
        stack = torch.stack([self.weights[layer] for layer in sorted(self.weights)])
        return torch.stack([over_attended(stack[:, r], self.places[r], gamma, lam) for r in range(stack.shape[1])])


def over_attended(weights: Tensor, places: Tensor, gamma: float, lam: float) -> Tensor:
    """Return a mask ``[T]`` from one row's attention ``[layers, T]`` and its media mask ``[T]``."""
    own = weights[:, places]
    share = own.sum(-1)
    order = share.argsort(descending=True)
    held = (share[order] / share.sum()).cumsum(0)
    count = int((held < gamma).sum()) + 1
    mean = own[order[:count]].mean(dim=0)
    deviation = mean.std() if len(mean) > 1 else mean.new_zeros(())
    out = torch.zeros_like(places)
    out[places] = mean >= mean.mean() + lam * deviation
    return out


avisc = Avisc
STRATEGIES = {"avisc": Avisc}
