"""Optimised offsets on keys and values: reset to zero at every new token, float32 or wider for any model dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limelight.models.runtime.attention import AttentionHook


class Deltas(AttentionHook):
    """Offsets ``dK_l, dV_l`` of ``[B, H, T, d]``, one per query head, applied for every query (sequence scope; LIME, eq. 4).

    They are added as ``q dK^T`` to the scores and ``A dV`` to the output instead of to K and V: the sums are the same, but
    an offset of 1e-3 is not lost to rounding beside a large bfloat16 key.

    Each layer's are created at its first call, since sizes may differ by layer, and values may have a different width than keys.

    Args:
        layers: the layers with offsets.
        dtype: of the model.
    """

    def __init__(self, layers: Sequence[int], dtype: torch.dtype) -> None:
        self.layers = tuple(layers)
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if layer in self.layers and layer not in self.keys:
            seen = (*q.shape[:2], k.shape[2])  # B, query heads, T
            self.keys[layer], self.values[layer] = (
                torch.zeros((*seen, x.shape[3]), device=q.device, dtype=self.dtype, requires_grad=True) for x in (k, v)
            )
        return q, k, v

    def parameters(self) -> list[Tensor]:
        """Return all key offsets, then all value offsets, in layer order."""
        return [*self.keys.values(), *self.values.values()]

    def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
        delta = self.keys.get(layer)
        if delta is None:
            return scores
        delta = delta.to(q.device)  # layers may be on several devices
        return scores + torch.matmul(q.to(delta.dtype), delta.transpose(2, 3))

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        delta = self.values.get(layer)
        if delta is None:
            return out
        delta = delta.to(out.device)
        return (out + torch.matmul(weights.to(delta.dtype), delta)).to(out.dtype)

    def set_gradients(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient.detach()
