"""Dual prefill attention in one pass over the keys (Triton), without a ``[T, T]`` tensor.

With weights ``a = softmax(s)`` and score tangents ``s'`` (:mod:`limelight.relevance.layers.attention`), a tangent's output is

    out' = sum_j a_j (s'_j - m) v_j + w sum_j a_j v'_j,      m = sum_j a_j s'_j

so that ``sum a s' v``, ``sum a v'`` and ``m`` can be accumulated together with the sums of flash attention (Dao et al.,
2022, arXiv 2205.14135, algorithm 1), with six small matrix products per tile instead of two, for values and one tangent.

Used on a GPU for prefills with a causal mask and left padding, after a check on this device that the kernel agrees with
the plain computation on random inputs; otherwise the plain computation is used.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

HEADS = (16, 32, 64, 128)  # head dimensions, which are tile widths
TILE = 64


def reference(q: Tensor, k: Tensor, v: Tensor, start: Tensor, scaling: float, tangent: float, weight: float) -> Tensor:
    """Compute the plain sums: ``[J, B, H, T, d]`` from q ``[J, B, H, T, d]`` and k, v ``[J, B, Hkv, T, d]``; block 0
    contains the values. Queries before ``start`` ``[B]`` attend to nothing and give zeros."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    places = torch.arange(q.shape[3], device=q.device)
    seen = (places[None, :] <= places[:, None])[None, None] & (places >= start[:, None])[:, None, None]
    scores = (q[0] @ k[0].mT * scaling).masked_fill(~seen, -torch.inf)
    a = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    out = [a @ v[0]]
    for c in range(1, q.shape[0]):
        ds = (q[c] @ k[0].mT + q[0] @ k[c].mT) * tangent
        da = a * ds - a * (a * ds).sum(-1, keepdim=True)
        out.append(da @ v[0] + weight * (a @ v[c]))
    return torch.stack(out)


@cache
def kernel() -> Any:
    """Return the Triton kernel, compiled at its first launch; None without Triton."""
    if find_spec("triton") is None:
        return None
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def run(  # type: ignore[no-untyped-def]
        Q, K, V, OUT, START, q_row, q_head, q_place, k_row, k_head, k_place, v_row, v_head, v_place,
        o_row, o_head, o_place, batch, length, groups, scaling, tangent, weight,
        TILE: tl.constexpr, D: tl.constexpr,
    ):  # fmt: skip
        head, inner = tl.program_id(1), tl.arange(0, D)
        b, c = tl.program_id(2) % batch, tl.program_id(2) // batch + 1
        rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
        there = rows[:, None] < length
        at = b.to(tl.int64)
        at_c = (c * batch + b).to(tl.int64)
        of_q = head * q_head + rows[:, None] * q_place + inner[None, :]
        of_k, of_v = (head // groups) * k_head, (head // groups) * v_head
        q = tl.load(Q + at * q_row + of_q, mask=there, other=0.0)
        dq = tl.load(Q + at_c * q_row + of_q, mask=there, other=0.0)
        start = tl.load(START + b)
        top = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        mean = tl.zeros([TILE], tl.float32)
        out = tl.zeros([TILE, D], tl.float32)
        dout = tl.zeros([TILE, D], tl.float32)
        for begin in range((start // TILE) * TILE, tl.minimum((tl.program_id(0) + 1) * TILE, length), TILE):
            cols = begin + tl.arange(0, TILE)
            near = cols[None, :] < length
            by_k = of_k + cols[None, :] * k_place + inner[:, None]
            k = tl.load(K + at * k_row + by_k, mask=near, other=0.0)
            dk = tl.load(K + at_c * k_row + by_k, mask=near, other=0.0)
            seen = near & (cols[None, :] <= rows[:, None]) & (cols[None, :] >= start)
            s = tl.where(seen, tl.dot(q, k, input_precision="ieee") * scaling, float("-inf"))
            ds = (tl.dot(dq, k, input_precision="ieee") + tl.dot(q, dk, input_precision="ieee")) * tangent
            higher = tl.maximum(top, tl.max(s, 1))
            level = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp(s - level[:, None])
            shrink = tl.exp(top - level)
            pds = p * tl.where(seen, ds, 0.0)
            total = total * shrink + tl.sum(p, 1)
            mean = mean * shrink + tl.sum(pds, 1)
            by_v = of_v + cols[:, None] * v_place + inner[None, :]
            far = cols[:, None] < length
            v = tl.load(V + at * v_row + by_v, mask=far, other=0.0)
            dv = tl.load(V + at_c * v_row + by_v, mask=far, other=0.0)
            out = out * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            dout = dout * shrink[:, None] + tl.dot(pds.to(v.dtype), v, input_precision="ieee")
            dout += tl.dot((p * weight).to(v.dtype), dv, input_precision="ieee")
            top = higher
        inverse = tl.where(total > 0, 1 / total, 0.0)
        out = out * inverse[:, None]
        dout = dout * inverse[:, None] - (mean * inverse)[:, None] * out
        of_o = head * o_head + rows[:, None] * o_place + inner[None, :]
        if c == 1:
            tl.store(OUT + at * o_row + of_o, out.to(OUT.dtype.element_ty), mask=there)
        tl.store(OUT + at_c * o_row + of_o, dout.to(OUT.dtype.element_ty), mask=there)

    return run


def attend(
    q: Tensor, k: Tensor, v: Tensor, start: Tensor, channels: int, scaling: float, tangent: float, weight: float
) -> Tensor:
    """Compute ``[rows, T, H, d]`` from q ``[rows, H, T, d]`` and k, v ``[rows, Hkv, T, d]`` with ``rows = channels * B``.

    Args:
        start: int32 ``[B]``, the first real position of each row.
        scaling, tangent, weight: factors of scores, score tangents and value tangents.
    """
    rows, heads, length, dim = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = torch.empty((rows, length, heads, dim), dtype=q.dtype, device=q.device)
    batch = rows // channels
    grid = (-(-length // TILE), heads, batch * (channels - 1))
    strides = [s for x in (q, k, v) for s in x.stride()[:3]] + [out.stride(0), out.stride(2), out.stride(1)]
    kernel()[grid](
        q, k, v, out, start, *strides, batch, length, heads // k.shape[1], scaling, tangent, weight,
        TILE=TILE, D=dim, num_warps=8, num_stages=1,
    )  # fmt: skip
    return out


@cache
def trusted(dtype: torch.dtype, dim: int, device: torch.device) -> bool:
    """Return whether the kernel runs on this device and agrees with the plain sums on random inputs."""
    if device.type != "cuda" or dim not in HEADS or kernel() is None:
        return False
    generator = torch.Generator(device="cpu").manual_seed(0)
    channels, batch, heads, length = 3, 2, 4, TILE + 9
    q, k, v = (
        torch.randn(channels * batch, n, length, dim, generator=generator).to(device, dtype) for n in (heads, 2, 2)
    )
    start = torch.tensor([0, 5], dtype=torch.int32, device=device)
    numbers = (dim**-0.5, dim**-0.5 / 4, 0.5)
    try:
        mine = attend(q, k, v, start, channels, *numbers).transpose(1, 2).float()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - a kernel that does not compile or launch here is not used; the plain sums are
        return False
    a, b, c = (x.float().reshape(channels, batch, *x.shape[1:]) for x in (q, k, v))
    want = reference(a, b, c, start, *numbers).reshape(mine.shape)
    limit = 2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    return bool((mine - want).norm() <= limit * want.norm())


def causal_starts(mask: Tensor, length: int) -> Tensor | None:
    """Return each row's first real position, int32 ``[B]``, if an additive mask ``[B, 1, T, T]`` is causal with left
    padding, else None. (Mask rows of padding queries are ignored.)"""
    if mask.ndim != 4 or mask.shape[1] != 1 or tuple(mask.shape[-2:]) != (length, length):
        return None
    seen = mask[:, 0] >= 0
    start = (~seen[:, -1]).int().cumprod(-1).sum(-1)
    places = torch.arange(length, device=mask.device)
    want = (places[None, :] <= places[:, None])[None] & (places >= start[:, None])[:, None]
    real = (places >= start[:, None])[:, :, None]
    return start.int() if bool(((seen == want) | ~real).all()) else None
