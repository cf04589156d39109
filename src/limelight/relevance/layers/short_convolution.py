"""Gated short convolution: ``y = W_o (C * conv(B * x))`` with ``B, C, x = W_i h`` (LFM2, arXiv 2511.23404).

Rules: both products are bilinear, so each factor gets half (AttnLRP, proposition 3.3, the uniform rule); the
convolution is linear. Relevance is conserved, except for biases. The rule is the same for all composites.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance.blocks import product
from limelight.relevance.layers._mixer import Mixer, State, masked, mixer_kind
from limelight.relevance.mode import Mode, blocks


class ShortConv(Mixer):
    def compute(
        self, mode: Mode, x: Tensor, state: State | None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, State]]:
        x = masked(x, mask)
        b, c, v = blocks(self.module.in_proj(x), mode.channels).chunk(3, dim=-1)
        inner = product(mode, b, v).reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)
        mixed, before, after = self.convolved(mode, inner, None if state is None else state[0])
        out: Tensor = self.module.out_proj(
            product(mode, c, blocks(mixed.transpose(1, 2), mode.channels)).reshape(x.shape[0], x.shape[1], -1)
        )
        return out, ((before,), (after,))


def short_conv(module: Any, conv: nn.Conv1d) -> ShortConv | None:
    """Match by an input projection three times as wide as the convolution, and no other parameters."""
    into, out = getattr(module, "in_proj", None), getattr(module, "out_proj", None)
    if (
        into is None
        or out is None
        or {n for n, _ in module.named_children()} != {"in_proj", "out_proj", _name(module, conv)}
    ):
        return None
    if int(into.out_features) != 3 * conv.in_channels or int(out.in_features) != conv.in_channels:
        return None
    loose = [p for p in module.parameters(recurse=False) if isinstance(p, torch.Tensor)]
    return None if loose else ShortConv(module, conv)


def _name(module: Any, child: nn.Module) -> str:
    return next(str(n) for n, c in module.named_children() if c is child)


KIND = mixer_kind("short_convolution", short_conv)
