"""VCD: contrast with the logits for the same image under diffusion noise.

Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding", CVPR 2024 (arXiv 2311.16922), section 3; the noise schedule is the released code's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import disturbed
from limelight.decoding.contrastive import ContrastSession, amplified, check_range
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import SettingError

STEPS = 1000


@dataclass(frozen=True)
class Vcd(Method):
    """``(1 + alpha) l - alpha l'``, ``l'`` from the noised media; tokens with ``p < beta * max p`` dropped.

    Args:
        alpha: strength of the contrast; 0 is the unchanged model.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        noise_step: diffusion step of the media's noise out of 1000, 0 (almost clean) to 999 (noise).
        seed: seed of the noise. Every image, spectrogram or waveform gets noise generated from it, so a row of a batch
            gets the same noise as alone.

    Differs from the paper: nothing known; noise on video frames and audio features is ours.
    Differs from the released code (LLaVA-1.5, InstructBLIP, Qwen-VL; batch 1, sampling only): any family, batches and
    greedy decoding; seeded noise instead of the global state. In its first release the second run used the first one's
    cache from the second token on, so that only the first was contrasted; later releases and this library keep two
    caches. Its scripts pass alpha 1, as here; the sampler's own default is 0.5.
    """

    name = "vcd"
    capabilities = Capabilities(batches=True, beams=True, second_prompt=True, continues_cache=True)

    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("vcd", "alpha", self.alpha, 0.0, hint="the paper: 1")
        check_range("vcd", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        if not isinstance(self.noise_step, int) or not 0 <= self.noise_step < STEPS:
            raise SettingError(
                f"vcd: expected a noise_step in 0..{STEPS - 1}, got {self.noise_step!r}", hint="the paper: 500"
            )

    def session(self, context: GenerationContext) -> ContrastSession:
        """Raises SettingError if the processor's tensors are not available."""

        def noised(name: str, features: Tensor, inputs: Mapping[str, Any]) -> Tensor:
            return diffused(features, noise_like(features, inputs, self.seed), self.noise_step)

        contrast = disturbed(context, noised, method="vcd")
        return ContrastSession(context, contrast, lambda real, other, _: amplified(real, other, self.alpha, self.beta))


def diffused(x: Tensor, noise: Tensor, step: int) -> Tensor:
    """Compute ``sqrt(a) x + sqrt(1 - a) noise``, with ``a`` the product of ``1 - beta`` up to ``step``.

    ``beta = sigmoid(linspace(-6, 6, 1000)) (0.5e-2 - 1e-5) + 1e-5``.
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(torch.cumprod(1 - betas, dim=0)[step])
    wide = torch.promote_types(x.dtype, torch.float32)
    return (math.sqrt(kept) * x.to(wide) + math.sqrt(1 - kept) * noise.to(x.device, wide)).to(x.dtype)


def noise_like(x: Tensor, inputs: Mapping[str, Any], seed: int) -> Tensor:
    """Return normal noise of ``x``'s shape, generated from ``seed`` separately for each media item of the batch.

    A media item is an entry of the first dimension. If the processor returns the patches of all items together, with a
    grid ``[media, axes]`` that counts them, it is the item's share of the patches: along the first axis ``[N, D]``, or
    the last ``[1, ..., N * width]``. Tiles and frames of one item get different noise.
    """
    for counts in _counts(inputs):
        total = sum(counts)
        if x.ndim < 4 and total == x.shape[0]:
            return torch.cat([_drawn((n, *x.shape[1:]), seed) for n in counts])
        if x.shape[0] == 1 and x.ndim > 2 and total and x.shape[-1] % total == 0:
            width = x.shape[-1] // total
            return torch.cat([_drawn((*x.shape[1:-1], n * width), seed) for n in counts], dim=-1)[None]
    return _drawn(tuple(x.shape[1:]), seed).expand(x.shape)


def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if len(shape) < 4:
        return torch.randn(shape, generator=generator)
    return torch.stack([torch.randn(shape[1:], generator=generator) for _ in range(shape[0])])


def _counts(inputs: Mapping[str, Any]) -> Iterator[list[int]]:
    """Yield the cell counts per media item, for every tensor that may be a grid ``[media, 2 or 3]``."""
    for value in inputs.values():
        if isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 2 and value.shape[1] in (2, 3):
            yield [int(n) for n in value.prod(dim=-1)]


vcd = Vcd
STRATEGIES = {"vcd": Vcd}
