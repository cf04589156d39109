"""Localisers by relevance and gradients of the decision."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from limelight.decoding.looking.glance import Glance, finite, gradient, positions
from limelight.decoding.looking.localisers import Localiser
from limelight.errors import SettingError
from limelight.relevance.attribute import following_rules
from limelight.relevance.composites import COMPOSITES
from limelight.relevance.forward.stream import Channel, DualOutput, DualStream
from limelight.types import Span


def relevance(glance: Glance, composite: str) -> Tensor:
    """Signed relevance ``[R, T]`` of the decision: ``sum_d x_d df/dx_d`` under the composite's rules."""
    with following_rules(glance.adapter, composite, glance.call) as leaves:
        f = glance.objective(glance.adapter.hidden(leaves.call, leaves.embeds))
        return finite(leaves.relevance(f.sum()))


def absolute(glance: Glance) -> Tensor:
    return relevance(glance, "attnlrp").abs()


def positive(glance: Glance) -> Tensor:
    return relevance(glance, "attnlrp").clamp_min(0)


def gradient_norm(glance: Glance) -> Tensor:
    """Norm of the decision's gradient at each merged embedding."""
    norm: Tensor = gradient(glance, glance.objective).float().norm(dim=-1)
    return norm


def blend(glance: Glance) -> Tensor:
    """The positive part of the relevance and the norm of the gradient, each as a part of its sum over the media: relevance
    tells apart what is there, the gradient finds what is too small to speak."""
    out = torch.zeros(glance.media.shape)
    for scores in (positive(glance), gradient_norm(glance)):
        own = scores.cpu().float()
        for row in range(glance.rows):
            where = positions(glance.own(row))
            out[row, where] += own[row, where] / own[row, where].sum().clamp_min(1e-12)
    return out


def entropy_gradient(glance: Glance) -> Tensor:
    """Norm of the gradient of the next token's entropy (Gröpl et al., 2026, arXiv 2604.08456, with a single region)."""
    norm: Tensor = gradient(glance, glance.entropy).float().norm(dim=-1)
    return norm


def phi(glance: Glance) -> Tensor:
    """Signed relevance by forward mode: the media in blocks, one tangent channel each; no backward pass."""
    if glance.decision.phrase:
        raise SettingError("look-again: where='phi' explains a decision, not a phrase", hint="where='attnlrp'")
    blocks = torch.full(glance.media.shape, -1, dtype=torch.long)
    count = 0
    for row in range(glance.rows):
        at = 0
        for span in glance.own(row):
            found = block_numbers(span, int(glance.options.get("channels", 16)))
            blocks[row, span.start : span.stop] = found + at
            at += int(found.max()) + 1
        count = max(count, at)
    mask = [(blocks == c) for c in range(count)]
    device = glance.call.embeds.device
    channels = [Channel(str(c), m.float().to(device), 0.0) for c, m in enumerate(mask)]
    with torch.inference_mode(False), torch.no_grad():
        call = glance.call.ordinary()
        dual = DualStream(glance.adapter, call, channels, COMPOSITES["attnlrp"], continues=False)
        _, found = dual.heads(DualOutput(dual.every_position()[:, :, -1]))
    scores = torch.zeros(glance.media.shape)
    for values, m in zip(found, mask, strict=True):
        margin = glance.decision.margin(values).cpu() / m.sum(-1).clamp_min(1)
        scores += margin[:, None] * m
    return finite(scores)


def block_numbers(span: Span, most: int) -> Tensor:
    """Number of the block ``[n]`` that each position of a span belongs to: at most ``most`` blocks of adjacent positions,
    square ones on a grid."""
    if span.grid is None or len(span.grid) != 2:
        return torch.arange(len(span)) * min(most, len(span)) // len(span)
    side = max(1, math.isqrt(most))
    rows, columns = span.grid
    down, across = (torch.arange(n) * min(side, n) // n for n in (rows, columns))
    return (down[:, None] * min(side, columns) + across[None]).flatten()


LOCALISERS = {
    "attnlrp": Localiser(partial(relevance, composite="attnlrp"), "signed AttnLRP relevance of the decision", True),
    "attnlrp-absolute": Localiser(absolute, "its absolute value", True),
    "attnlrp-positive": Localiser(positive, "its positive part", True),
    "cp-lrp": Localiser(partial(relevance, composite="cp-lrp"), "signed CP-LRP relevance of the decision", True),
    "gradient": Localiser(gradient_norm, "norm of the decision's gradient", True),
    "entropy-gradient": Localiser(entropy_gradient, "norm of the gradient of the next token's entropy", True),
    "blend": Localiser(blend, "positive relevance and gradient norm, alike; two backward passes", True),
    "phi": Localiser(phi, "signed AttnLRP relevance of blocks of positions, in forward mode"),
}
