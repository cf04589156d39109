"""A localiser by the gradient of the pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad, unfold

from limelight.decoding.collate import batch_of
from limelight.decoding.looking.glance import Glance, finite
from limelight.decoding.looking.localisers import Localiser
from limelight.decoding.looking.localisers.attention import GENERIC
from limelight.decoding.looking.originals import reworded
from limelight.errors import UnsupportedError
from limelight.types import Prompt

BLUR, MEDIAN = 3, 7  # kernel sizes, pixels
SIGMA = 0.8  # of the blur


def pixel_gradient(glance: Glance) -> Tensor:
    """Gradient norm of each pixel for the likeliest token's log-probability, over that for a generic question, at pixels with
    more than the median of high frequencies; mean over each position's pixels.

    Source: "pure gradient" of Zhang et al., "MLLMs Know Where to Look", ICLR 2025 (arXiv 2502.17422) and its released code.
    Differs: the answer so far is not part of the prompt.

    Raises:
        UnsupportedError: other than one picture of one grid, whose pixels are ``[1, 3, rows, columns]``.
    """
    own = [_gradient(glance, p) for p in glance.prompts]
    words = str(glance.options.get("generic") or GENERIC)
    base = [_gradient(glance, reworded(glance.adapter, p, words)) for p in glance.prompts]
    out = torch.zeros(glance.media.shape)
    for row, (norm, generic) in enumerate(zip(own, base, strict=True)):
        (span,) = glance.own(row)
        pixels = _pixels(glance.prompts[row]).float().cpu()
        high = _high_frequencies(pixels)
        scores = norm / generic.clamp_min(1e-12) * (high > high.median())
        pooled = interpolate(scores[None, None], size=span.cells, mode="area")[0, 0]
        out[row, span.start : span.stop] = pad(pooled, (0, span.margin)).flatten()
    return finite(out)


def _pixels(prompt: Prompt) -> Tensor:
    found = prompt.tensors.get("pixel_values")
    spans = [s for s in prompt.spans if s.modality != "text"]
    grids = len(spans) == 1 and spans[0].grid is not None
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[:2] != (1, 3) or not grids:
        raise UnsupportedError(
            "look-again: where='pixel-gradient' needs one picture of pixels [1, 3, rows, columns]",
            hint="where='gradient'",
        )
    return found[0]


def _gradient(glance: Glance, prompt: Prompt) -> Tensor:
    """Norm over channels ``[rows, columns]`` of the gradient of the likeliest token's log-probability."""
    adapter = glance.adapter
    _pixels(prompt)
    tensors, _ = batch_of(adapter, [prompt])
    with torch.inference_mode(False), torch.enable_grad(), adapter.frozen():
        pixels = tensors["pixel_values"].clone().requires_grad_(True)
        out = adapter.model(**{**tensors, "pixel_values": pixels}, use_cache=False)
        (found,) = torch.autograd.grad(out.logits[0, -1].float().log_softmax(-1).max(), pixels)
    norm: Tensor = found[0].float().norm(dim=0)
    return norm.cpu()


def _high_frequencies(pixels: Tensor) -> Tensor:
    """``[rows, columns]``: what a blur takes away, over channels, smoothed by a median."""
    at = torch.arange(BLUR, dtype=torch.float32) - BLUR // 2
    line = torch.exp(-0.5 * (at / SIGMA) ** 2)
    kernel = (line[:, None] * line[None] / line.sum() ** 2).expand(3, 1, BLUR, BLUR)
    soft = conv2d(pad(pixels[None], (BLUR // 2,) * 4, mode="reflect"), kernel, groups=3)[0]
    left = (pixels - soft).square().sum(0).sqrt()
    around = unfold(pad(left[None, None], (MEDIAN // 2,) * 4, mode="reflect"), MEDIAN)
    return around.median(dim=1).values.reshape(left.shape)


LOCALISERS = {
    "pixel-gradient": Localiser(
        pixel_gradient, "gradient of the pixels over that for a generic question (ViCrop)", True
    )
}
