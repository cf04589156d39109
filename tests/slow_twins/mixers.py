"""Relevance through token mixers, position by position, no autograd: one row ``h`` [T, D], relevance of the output in.

What decides how much is kept is constant (decay, rate, transition, step, B and C of Mamba; the lengths of q and k).

    linear, convolution  R_i = sum_j x_i w_ji / z_j R_j
    norm                 relevance passes
    silu                 z / (z + eps) of it passes
    product              half to each factor
    delta rule           o_te = sum_j sum_dd' q_td [P_t .. P_{j+1}]_dd' b_j k_jd' v_je: of each summand's share of R_te a
                         quarter to q, a quarter to k, a half to v (AttnLRP), or all of it to v (CP-LRP)
    Mamba-2              y_tp = sum_j c_tj x_jp + D x_tp: all of each summand's share to x_jp
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.attnlrp import through_linear
from tests.slow_twins.llama import EPS

Shares = tuple[float, float, float]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` [T, C], weight [C, 1, K]: each position and the K - 1 before it."""
    out = torch.zeros_like(x)
    reach = weight.shape[-1]
    for t in range(x.shape[0]):
        for k in range(reach):
            if t - reach + 1 + k >= 0:
                out[t] += weight[:, 0, k] * x[t - reach + 1 + k]
        if bias is not None:
            out[t] += bias
    return out


def through_conv(x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor) -> Tensor:
    ratio = relevance / conv(x, weight, bias)
    back = torch.zeros_like(x)
    reach = weight.shape[-1]
    for t in range(x.shape[0]):
        for k in range(reach):
            if t - reach + 1 + k >= 0:
                back[t - reach + 1 + k] += weight[:, 0, k] * x[t - reach + 1 + k] * ratio[t]
    return back


def silu(z: Tensor) -> Tensor:
    return z / (1 + torch.exp(-z))


def short_conv(m: Any, h: Tensor, relevance: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    """Output ``[T, D]`` and relevance ``[T, D]`` of the input."""
    width = h.shape[1]
    all_three = h @ m.in_proj.weight.T
    b, c, x = all_three[:, :width], all_three[:, width : 2 * width], all_three[:, 2 * width :]
    mixed = conv(b * x, m.conv.weight, m.conv.bias)
    out = (c * mixed) @ m.out_proj.weight.T
    half = through_linear(c * mixed, m.out_proj.weight, relevance) / 2
    inner = through_conv(b * x, m.conv.weight, m.conv.bias, half) / 2
    return out, through_linear(h, m.in_proj.weight, torch.cat([inner, half, inner], dim=1))


def delta_net(m: Any, h: Tensor, relevance: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    length, dk, dv, heads = h.shape[0], m.head_k_dim, m.head_v_dim, m.num_v_heads
    flat = h @ m.in_proj_qkv.weight.T
    pre = conv(flat, m.conv1d.weight, None)
    active = silu(pre)
    z = h @ m.in_proj_z.weight.T
    rate = 1 / (1 + torch.exp(-(h @ m.in_proj_b.weight.T)))
    decay = torch.exp(-torch.exp(m.A_log) * torch.log(1 + torch.exp(h @ m.in_proj_a.weight.T + m.dt_bias)))
    o = torch.zeros(length, heads * dv, dtype=h.dtype)
    parts = []
    for head in range(heads):
        group = head * m.num_k_heads // heads
        own = [slice(group * dk, (group + 1) * dk), slice(m.key_dim + group * dk, m.key_dim + (group + 1) * dk)]
        own.append(slice(2 * m.key_dim + head * dv, 2 * m.key_dim + (head + 1) * dv))
        q, k, v = (active[:, s] for s in own)
        q, k = (x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        q = q / dk**0.5
        steps = [
            decay[t, head] * (torch.eye(dk, dtype=h.dtype) - rate[t, head] * torch.outer(k[t], k[t]))
            for t in range(length)
        ]
        kept: dict[tuple[int, int], Tensor] = {}
        for t in range(length):
            kept[t, t] = torch.eye(dk, dtype=h.dtype)
            for j in range(t):
                kept[t, j] = steps[t] @ kept[t - 1, j]
            for j in range(t + 1):
                o[t, head * dv : (head + 1) * dv] += (q[t] @ kept[t, j] @ k[j]) * rate[j, head] * v[j]
        parts.append((own, q, k, v, kept))
    square = o.reshape(length, heads, dv)
    normed = (
        square / torch.sqrt((square**2).mean(-1, keepdim=True) + m.norm.variance_epsilon) * m.norm.weight
    ).reshape(length, -1)
    out = (normed * silu(z)) @ m.out_proj.weight.T

    half = through_linear(normed * silu(z), m.out_proj.weight, relevance) / 2
    r_active = torch.zeros_like(active)
    for head, (own, q, k, v, kept) in enumerate(parts):
        place = slice(head * dv, (head + 1) * dv)
        for t in range(length):
            ratio = half[t, place] / o[t, place]
            for j in range(t + 1):
                terms = torch.einsum("d,dc,c,e,e->dce", q[t], kept[t, j], k[j], v[j], ratio) * rate[j, head]
                r_active[t, own[0]] += terms.sum((1, 2)) * shares[0]
                r_active[j, own[1]] += terms.sum((0, 2)) * shares[1]
                r_active[j, own[2]] += terms.sum((0, 1)) * shares[2]
    r_flat = through_conv(flat, m.conv1d.weight, None, r_active * pre / (pre + EPS))
    return out, through_linear(h, m.in_proj_qkv.weight, r_flat) + through_linear(
        h, m.in_proj_z.weight, half * z / (z + EPS)
    )


def mamba(m: Any, h: Tensor, relevance: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    length, inner, heads, size, state = h.shape[0], m.intermediate_size, m.num_heads, m.head_dim, m.ssm_state_size
    channels = m.conv_dim
    flat = h @ m.in_proj.weight.T
    gate, raw, step = flat[:, :inner], flat[:, inner : inner + channels], flat[:, inner + channels :]
    pre = conv(raw, m.conv1d.weight, m.conv1d.bias)
    active = silu(pre)
    x, b, c = active[:, :inner], active[:, inner : inner + m.n_groups * state], active[:, inner + m.n_groups * state :]
    dt = torch.log(1 + torch.exp(step + m.dt_bias)).clamp(*m.time_step_limit)
    y = torch.zeros(length, inner, dtype=h.dtype)
    weights = torch.zeros(heads, length, length, dtype=h.dtype)
    for head in range(heads):
        group = head * m.n_groups // heads
        place, bank = slice(head * size, (head + 1) * size), slice(group * state, (group + 1) * state)
        a = -torch.exp(m.A_log[head])
        for t in range(length):
            for j in range(t + 1):
                kept = torch.exp(a * dt[j + 1 : t + 1, head].sum())
                weights[head, t, j] = kept * dt[j, head] * (c[t, bank] * b[j, bank]).sum()
            weights[head, t, t] += m.D[head]
            y[t, place] = weights[head, t, : t + 1] @ x[: t + 1, place]
    gated = y * silu(gate)
    groups = gated.reshape(length, -1, m.norm.group_size)
    normed = (groups / torch.sqrt((groups**2).mean(-1, keepdim=True) + m.norm.variance_epsilon)).reshape(length, inner)
    out = (normed * m.norm.weight) @ m.out_proj.weight.T

    half = through_linear(normed * m.norm.weight, m.out_proj.weight, relevance) / 2
    r_x = torch.zeros_like(x)
    for head in range(heads):
        place = slice(head * size, (head + 1) * size)
        r_x[:, place] = through_linear(x[:, place].T, weights[head], half[:, place].T).T
    r_active = torch.cat([r_x, torch.zeros_like(b), torch.zeros_like(c)], dim=1)
    r_raw = through_conv(raw, m.conv1d.weight, m.conv1d.bias, r_active * pre / (pre + EPS))
    return out, through_linear(
        h, m.in_proj.weight, torch.cat([half * gate / (gate + EPS), r_raw, torch.zeros_like(step)], dim=1)
    )
