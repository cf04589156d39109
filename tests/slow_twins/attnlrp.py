"""AttnLRP as the paper writes it (Achtibat et al., ICML 2024): relevance is carried down layer by layer, no autograd.

    linear     R_i = sum_j x_i w_ji / z_j R_j                               eq. 8 (epsilon-LRP without epsilon)
    sum        the same with weights 1: each summand gets its part
    norm       R_i = R_i                                                    proposition 3.4
    silu       R_i = z / (z + eps) R_i                                      section 3.3.1
    product    each of two factors gets a half                              proposition 3.2
    A V        R_A = sum_p A_ij V_jp / (2 O_ip) R_ip, and R_V alike         proposition 3.3
    softmax    R_s = s (R_A - A sum R_A)                                    proposition 3.1
    Q K^T      R_q = sum_j q_ip k_jp / (2 S_ij) R_ij, and R_k alike         proposition 3.3

CP-LRP (Ali et al., 2022) holds A constant: all of R_O goes to V; ``gates=False``: gates of MLPs are constants too.
ResLRP weighs the summands of a residual sum: m = (1 + gamma [sign of the summand = sign of the sum]) summand.
PA-LRP (Bakish et al., 2025): a rotated vector is a product of what was projected and of its position; each gets a half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.slow_twins.llama import EPS, Weights, norm, rotation, silu


def through_linear(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """``z = x W^T`` [T, out]; relevance of z to relevance of x [T, in]."""
    ratio = relevance / (x @ weight.T)
    return x * torch.einsum("to,oi->ti", ratio, weight)


def shared(x: Tensor, y: Tensor, relevance: Tensor, gamma: float = 0.0) -> tuple[Tensor, Tensor]:
    """``x + y``: each its part, by what agrees with the sum's sign where gamma is above 0."""
    parts = [torch.empty_like(x), torch.empty_like(y)]
    for t in range(x.shape[0]):
        for d in range(x.shape[1]):
            a, b = float(x[t, d]), float(y[t, d])
            a_weighed = a * (1 + gamma) if a * (a + b) > 0 else a
            b_weighed = b * (1 + gamma) if b * (a + b) > 0 else b
            for part, weighed in zip(parts, (a_weighed, b_weighed), strict=True):
                part[t, d] = weighed / (a_weighed + b_weighed) * relevance[t, d]
    return parts[0], parts[1]


def attention(q: Tensor, k: Tensor, v: Tensor, relevance: Tensor, cp: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance of q, k, v ``[T, d]`` of one head from that of its output ``[T, d]``."""
    length, dim = q.shape
    scores = torch.einsum("ip,jp->ij", q, k) / dim**0.5
    seen = torch.ones(length, length).tril().bool()
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
    out = torch.einsum("ij,jp->ip", weights, v)
    r_q, r_k, r_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(length):
        ratio = relevance[i] / out[i]  # [d]
        r_a = torch.zeros(length, dtype=q.dtype)
        for j in range(i + 1):
            part = weights[i, j] * v[j] * ratio
            r_v[j] += part if cp else part / 2
            r_a[j] = (part / 2).sum()
        if cp:
            continue
        r_s = scores[i] * (r_a - weights[i] * r_a.sum())
        for j in range(i + 1):
            part = q[i] * k[j] / dim**0.5 / (2 * scores[i, j]) * r_s[j]
            r_q[i] += part
            r_k[j] += part
    return r_q, r_k, r_v


def attribute(
    weights: Weights,
    x: Tensor,
    target: int,
    *,
    cp: bool = False,
    gates: bool = True,
    gamma: float = 0.0,
    positions: bool = False,
) -> Tensor:
    """Relevance ``[T]`` of every position of ``x [T, D]`` for the target's logit at the last position."""
    length, d = x.shape[0], weights.dim
    turns = [rotation(t, d, weights.theta, x.dtype) for t in range(length)]
    kept = []
    for layer in weights.layers:
        h = norm(x, layer.norm1, weights.eps, False)
        flat = {n: h @ w.T for n, w in (("q", layer.q), ("k", layer.k), ("v", layer.v))}
        heads = []
        for head in range(weights.heads):
            group = head * weights.kv_heads // weights.heads
            own, common = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
            q = torch.stack([t @ row for t, row in zip(turns, flat["q"][:, own], strict=True)])
            k = torch.stack([t @ row for t, row in zip(turns, flat["k"][:, common], strict=True)])
            heads.append((q, k, flat["v"][:, common]))
        mixed = torch.cat([_mix(q, k, v) for q, k, v in heads], dim=-1)
        middle = x + mixed @ layer.o.T
        h2 = norm(middle, layer.norm2, weights.eps, False)
        kept.append((x, h, flat, heads, mixed, middle, h2))
        x = middle + (silu(h2 @ layer.gate.T, False) * (h2 @ layer.up.T)) @ layer.down.T

    final = norm(x, weights.norm, weights.eps, False)
    of_positions = torch.zeros(length, dtype=x.dtype)
    relevance = torch.zeros_like(x)
    relevance[-1] = final[-1] * weights.head[target]  # the linear rule for one output; the final norm passes it on
    for layer, (x0, h, flat, heads, mixed, middle, h2) in zip(reversed(weights.layers), reversed(kept), strict=True):
        z, u = h2 @ layer.gate.T, h2 @ layer.up.T
        product = silu(z, False) * u
        relevance, r_mlp = shared(middle, product @ layer.down.T, relevance, gamma)
        r_product = through_linear(product, layer.down, r_mlp)
        if gates:
            half = r_product / 2
            r_h2 = through_linear(h2, layer.gate, half * z / (z + EPS)) + through_linear(h2, layer.up, half)
        else:
            r_h2 = through_linear(h2, layer.up, r_product)
        relevance = relevance + r_h2
        relevance, r_attn = shared(x0, mixed @ layer.o.T, relevance, gamma)
        r_mixed = through_linear(mixed, layer.o, r_attn)
        r_flat = {n: torch.zeros_like(f) for n, f in flat.items()}
        for head, (q, k, v) in enumerate(heads):
            group = head * weights.kv_heads // weights.heads
            own, common = slice(head * d, (head + 1) * d), slice(group * d, (group + 1) * d)
            r_q, r_k, r_v = attention(q, k, v, r_mixed[:, own], cp)
            if positions:
                of_positions += (r_q.sum(-1) + r_k.sum(-1)) / 2
                r_q, r_k = r_q / 2, r_k / 2
            for t, turn in enumerate(turns):  # the rotation is linear
                r_flat["q"][t, own] += through_linear(flat["q"][t : t + 1, own], turn, r_q[t : t + 1])[0]
                r_flat["k"][t, common] += through_linear(flat["k"][t : t + 1, common], turn, r_k[t : t + 1])[0]
            r_flat["v"][:, common] += r_v
        relevance = relevance + sum(
            through_linear(h, w, r_flat[n]) for n, w in (("q", layer.q), ("k", layer.k), ("v", layer.v))
        )
    return relevance.sum(-1) + of_positions


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), float("-inf"))
    return torch.softmax(scores, dim=-1) @ v
