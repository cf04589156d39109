"""Softmax attention that can be differentiated twice without storing a ``[T, T]`` tensor.

Relevance inside an optimisation needs the gradient of a gradient. Automatic differentiation stores about fifteen
``[H, T, T]`` tensors per layer for it; here the weights are recomputed from q and k, a block of queries at a time, and keys
masked for all queries of a block are skipped. The results are equal up to the order of summation.

With ``S = scale q k^T + mask, A = softmax(S), out = A v`` and a gradient G of ``out`` (``r = rowsum(G * out)``):

    gv = A^T G        dS = A * (G v^T - r)        gq = scale dS k        gk = scale dS^T q

and for gradients U of (gq, gk, gv), with ``S' = scale (Uq k^T + q Uk^T)``, ``A' = A * (S' - rowsum(A * S'))``:

    of G    A' v + A Uv                 of v    A'^T G
    of q    scale (X k + dS Uk)         of k    scale (X^T q + dS^T Uq)
    X = A * (Y - rowsum(A * Y)),        Y = G Uv^T + (G v^T - r) * (S' - rowsum(A * S'))

(Y is the derivative with respect to A, up to a term constant over keys, which cancels in X.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # queries per block: their scores fit in the CPU's cache
Pieces = tuple[tuple[int, int, int, int], ...]


def pieces_of(mask: Tensor | None, queries: int, keys: int, block: int = BLOCK) -> Pieces:
    """Return half-open (first query, last query, first key, last key) per block; masked keys outside are excluded."""
    found = []
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        low, high = 0, keys
        if mask is not None:
            seen = (mask[:, :, start:stop, :keys] > torch.finfo(mask.dtype).min / 2).flatten(0, 2)
            if bool(seen.any(-1).all()):  # a fully masked row attends uniformly to all keys: keep all
                at = seen.any(0).nonzero()[:, 0]
                low, high = int(at[0]), int(at[-1]) + 1
        found.append((start, stop, low, high))
    return tuple(found)


class _Blocks:
    """The blocks of one attention call, with the values that every pass recomputes."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, pieces: Pieces) -> None:
        self.q, self.k, self.v, self.mask, self.scale, self.pieces = q, k, v, mask, scale, pieces

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor, Tensor]]:
        """Yield slices of queries and keys, then q, k, v and the weights of each block."""
        for start, stop, low, high in self.pieces:
            at, keys = slice(start, stop), slice(low, high)
            q, k, v = self.q[:, :, at], self.k[:, :, keys], self.v[:, :, keys]
            scores = torch.matmul(q, k.transpose(2, 3)).mul_(self.scale)
            if self.mask is not None:
                scores += self.mask[:, :, at, keys]
            yield at, keys, q, k, v, torch.softmax(scores, dim=-1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, pieces: Pieces) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        for at, _, _, _, value, weights in _Blocks(q, k, v, mask, scale, pieces):
            out[:, :, at] = torch.matmul(weights, value)
        ctx.save_for_backward(q, k, v, mask, out)
        ctx.rest = scale, pieces
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out = ctx.saved_tensors
        gradients: tuple[Tensor, ...] = _Gradient.apply(grad, q, k, v, out.detach(), mask, *ctx.rest)  # type: ignore[no-untyped-call]
        return (*gradients, None, None, None)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, mask: Tensor | None, scale: float,
        pieces: Pieces,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        mean = (grad * out).sum(-1, keepdim=True)
        gq, gk, gv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for at, keys, query, key, value, weights in _Blocks(q, k, v, mask, scale, pieces):
            g = grad[:, :, at]
            if not bool(g.any()):
                continue  # no gradient for these queries (in the last layer, all but the last)
            gv[:, :, keys] += torch.matmul(weights.transpose(2, 3), g)
            ds = torch.matmul(g, value.transpose(2, 3)).sub_(mean[:, :, at]).mul_(weights).mul_(scale)
            gq[:, :, at] = torch.matmul(ds, key)
            gk[:, :, keys] += torch.matmul(ds.transpose(2, 3), query)
        ctx.save_for_backward(grad, q, k, v, mask, mean)
        ctx.rest = scale, pieces
        return gq, gk, gv

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, uq: Tensor, uk: Tensor, uv: Tensor) -> tuple[Tensor | None, ...]:
        grad, q, k, v, mask, mean = ctx.saved_tensors
        scale, pieces = ctx.rest
        og, oq, ok, ov = (torch.zeros_like(x) for x in (grad, q, k, v))
        for at, keys, query, key, value, a in _Blocks(q, k, v, mask, scale, pieces):
            g, uq_, uk_, uv_ = grad[:, :, at], uq[:, :, at], uk[:, :, keys], uv[:, :, keys]
            moved = torch.matmul(uq_, key.transpose(2, 3))
            moved += torch.matmul(query, uk_.transpose(2, 3))
            moved *= scale
            moved -= (a * moved).sum(-1, keepdim=True)  # S' - rowsum(A * S')
            da = a * moved
            og[:, :, at] = torch.matmul(da, value).add_(torch.matmul(a, uv_))
            if not bool(g.any()):
                continue
            ov[:, :, keys] += torch.matmul(da.transpose(2, 3), g)
            centred = torch.matmul(g, value.transpose(2, 3)).sub_(mean[:, :, at])
            y = moved.mul_(centred).add_(torch.matmul(g, uv_.transpose(2, 3)))
            ds = centred.mul_(a).mul_(scale)
            x = y.sub_((a * y).sum(-1, keepdim=True)).mul_(a).mul_(scale)
            oq[:, :, at] = torch.matmul(x, key).add_(torch.matmul(ds, uk_))
            ok[:, :, keys] += torch.matmul(x.transpose(2, 3), query)
            ok[:, :, keys] += torch.matmul(ds.transpose(2, 3), uq_)
        return og, oq, ok, ov, None, None, None, None


def lean_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, block: int = BLOCK) -> Tensor:
    """Compute ``softmax(scale q k^T + mask) v``, twice differentiable in q, k and v.

    Shapes: q ``[B, H, Q, d]``, k ``[B, H, K, d]``, v ``[B, H, K, e]``, additive mask ``[B or 1, 1, Q or 1, K]`` or None;
    returns ``[B, H, Q, e]``. float32 or float64.
    """
    mask = None if mask is None else mask.expand(-1, -1, q.shape[2], -1)  # a mask row shared by all queries
    pieces = pieces_of(mask, q.shape[2], k.shape[2], block)
    attended: Tensor = _Attend.apply(q, k, v, mask, scale, pieces)  # type: ignore[no-untyped-call]
    return attended
