"""Attention of one new position over values and tangents in the true graph: two operations with explicit gradients.

The reference implementation is ``DualAttention._block``, against which they are tested. The raw scores between the two
operations are a tensor of the graph, since offsets act on them. Shapes: J = 1 + C blocks, B rows, Hkv kv heads, G query
heads per kv head, R = J G; the rows of block c are ``[c G, (c + 1) G)``. Keys and values are those of the cache, whose last
position is the new one; only that position has a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

once = torch.autograd.function.once_differentiable


class _Scores(torch.autograd.Function):
    """``[q K^T, q' K^T + q K'^T]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, new: Tensor, keys: Tensor) -> Tensor:
        size = q.shape[2] // keys.shape[0]
        raw = torch.matmul(q, keys[0].transpose(-1, -2))
        for c in range(1, keys.shape[0]):
            raw[:, :, c * size : (c + 1) * size].add_(torch.matmul(q[:, :, :size], keys[c].transpose(-1, -2)))
        ctx.save_for_backward(q, keys)
        return raw

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        q, keys = ctx.saved_tensors
        size = q.shape[2] // keys.shape[0]
        dq = torch.matmul(grad, keys[0])
        last = grad[..., -1:].transpose(-1, -2)  # [B, Hkv, 1, R]
        dk = [torch.matmul(last, q)]
        for c in range(1, keys.shape[0]):
            part = slice(c * size, (c + 1) * size)
            dq[:, :, :size].add_(torch.matmul(grad[:, :, part], keys[c]))
            dk.append(torch.matmul(last[..., part], q[:, :, :size]))
        return dq, torch.stack(dk), None


class _Mix(torch.autograd.Function):
    """Weights A = softmax(s) and A' = A s' - A sum(A s'), then ``[A V, A' V + A V' / divisor]``."""

    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, new: Tensor, values: Tensor, mask: Tensor | None, scales: tuple[float, float, float]
    ) -> tuple[Tensor, Tensor]:
        size = raw.shape[2] // values.shape[0]
        scaling, tangent, divisor = scales
        scores = raw[:, :, :size] * scaling
        weights = torch.softmax(scores if mask is None else scores.add_(mask), dim=-1)
        ds = raw[:, :, size:] * tangent
        rows = torch.empty_like(raw)
        rows[:, :, :size] = weights
        again = weights.repeat(1, 1, values.shape[0] - 1, 1)
        torch.mul(again, ds, out=rows[:, :, size:])
        sums = rows[:, :, size:].sum(-1, keepdim=True)
        rows[:, :, size:].addcmul_(again, sums, value=-1)
        out = torch.matmul(rows, values[0])
        for c in range(1, values.shape[0]):
            out[:, :, c * size : (c + 1) * size].add_(torch.matmul(weights, values[c]), alpha=1 / divisor)
        ctx.save_for_backward(again, ds, sums, rows, values)
        ctx.scales = scales
        ctx.mark_non_differentiable(rows)
        return out, rows

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        again, ds, sums, rows, values = ctx.saved_tensors
        size, channels = rows.shape[2] // values.shape[0], values.shape[0]
        scaling, tangent, divisor = ctx.scales
        weights = rows[:, :, :size]
        dw = torch.matmul(grad, values[0].transpose(-1, -2))  # of A, and of A' in the rows below
        da = dw[:, :, :size]
        dv = [torch.matmul(rows[..., -1:].transpose(-1, -2), grad)]
        tops = dw[:, :, size:]
        inner = (tops * again).sum(-1, keepdim=True)
        through = tops * (ds - sums) - inner * ds  # gradient of A through A'
        for c in range(1, channels):
            part = slice(c * size, (c + 1) * size)
            da.add_(torch.matmul(grad[:, :, part], values[c].transpose(-1, -2)), alpha=1 / divisor)
            da.add_(through[:, :, (c - 1) * size : c * size])
            dv.append(torch.matmul(weights[..., -1:].transpose(-1, -2), grad[:, :, part]) / divisor)
        draw = torch.empty_like(rows)
        torch.mul(tops.sub_(inner), again, out=draw[:, :, size:])
        draw[:, :, size:].mul_(tangent)
        da.mul_(weights)
        torch.sub(da, weights * da.sum(-1, keepdim=True), out=draw[:, :, :size])
        draw[:, :, :size].mul_(scaling)
        return draw, torch.stack(dv), None, None, None


def scores(q: Tensor, new: Tensor, keys: Tensor) -> Tensor:
    """Compute raw scores ``[B, Hkv, R, T]`` of queries ``[B, Hkv, R, d]``; keys ``[J, B, Hkv, T, d]``, the last is ``new``."""
    out: Tensor = _Scores.apply(q, new, keys)  # type: ignore[no-untyped-call]
    return out


def mix(
    raw: Tensor, new: Tensor, values: Tensor, mask: Tensor | None, scaling: float, divisors: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Compute outputs ``[B, Hkv, R, d]`` and weights ``[B, Hkv, R, T]`` (tangents' rows last) from raw scores.

    Args:
        new: the last position of ``values`` ``[J, B, Hkv, T, d]``, as a tensor of the graph.
        mask: additive, ``[1 | B, 1, 1, T]``.
        divisors: of the uniform rule (queries, keys, values).
    """
    scales = (scaling, scaling / divisors[0], float(divisors[2]))
    out, rows = _Mix.apply(raw, new, values, mask, scales)  # type: ignore[no-untyped-call]
    return out, rows
