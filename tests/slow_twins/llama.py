"""A Llama decoder written out by hand: one head at a time, whole sequence, no cache, in the dtype of its weights.

``rules`` puts AttnLRP on it in the form ``x / f + const(x - x / f)`` (and norms, activations with constant factors), so
that every later derivative goes through the same expressions. Offsets are added to K and V after the heads are repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EPS = 1e-10


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; ``q`` [H * d, D], ``k``, ``v`` [Hkv * d, D], ``o`` [D, H * d]."""

    norm1: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    norm2: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Weights:
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor
    heads: int
    kv_heads: int
    dim: int
    eps: float
    theta: float


def weights_of(model: Any) -> Weights:
    """Read off a transformers model with a bias-free Llama decoder."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    layers = []
    for block in decoder.layers:
        a, m = block.self_attn, block.mlp
        parts = (a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj)
        assert all(p.bias is None for p in parts)
        q, k, v, o, gate, up, down = (p.weight.detach() for p in parts)
        first, second = block.input_layernorm.weight.detach(), block.post_attention_layernorm.weight.detach()
        layers.append(Layer(first, q, k, v, o, second, gate, up, down))
    dim = decoder.layers[0].self_attn.head_dim
    return Weights(
        tuple(layers), decoder.norm.weight.detach(), model.lm_head.weight.detach(), config.num_attention_heads,
        config.num_key_value_heads, dim, config.rms_norm_eps, config.rope_parameters["rope_theta"],
    )  # fmt: skip


def rotation(position: int, dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """The rotary matrix of one position ``[d, d]``: pairs (i, i + d/2) turn by position / theta^(2i/d).

    Angles are computed in float32, as transformers does.
    """
    half = dim // 2
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = position * inverse
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    turn = torch.zeros(dim, dim, dtype=dtype)
    for i in range(half):
        turn[i, i] = turn[i + half, i + half] = cos[i]
        turn[i, i + half], turn[i + half, i] = -sin[i], sin[i]
    return turn


def fraction(x: Tensor, parts: int) -> Tensor:
    """The value x, of which only 1/parts can be differentiated."""
    return x / parts + (x - x / parts).detach()


def norm(x: Tensor, weight: Tensor, eps: float, rules: bool) -> Tensor:
    scale = (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return weight * (x * (scale.detach() if rules else scale))


def silu(z: Tensor, rules: bool) -> Tensor:
    value = z / (1 + torch.exp(-z))
    if not rules:
        return value
    return z * (value / (z + EPS)).detach() + (value - z * (value / (z + EPS))).detach()


def forward(
    weights: Weights,
    x: Tensor,
    *,
    rules: bool = False,
    dk: list[Tensor] | None = None,
    dv: list[Tensor] | None = None,
) -> Tensor:
    """Logits ``[V]`` of the last position of ``x [T, D]``; offsets ``[H, T, d]`` a layer."""
    length = x.shape[0]
    turns = [rotation(t, weights.dim, weights.theta, x.dtype) for t in range(length)]
    for number, layer in enumerate(weights.layers):
        h = norm(x, layer.norm1, weights.eps, rules)
        mixed = []
        for head in range(weights.heads):
            own = slice(head * weights.dim, (head + 1) * weights.dim)
            group = head * weights.kv_heads // weights.heads
            shared = slice(group * weights.dim, (group + 1) * weights.dim)
            q = torch.stack([turn @ row for turn, row in zip(turns, h @ layer.q[own].T, strict=True)])
            k = torch.stack([turn @ row for turn, row in zip(turns, h @ layer.k[shared].T, strict=True)])
            v = h @ layer.v[shared].T
            if rules:
                q, k, v = fraction(q, 4), fraction(k, 4), fraction(v, 2)
            if dk is not None and dv is not None:
                k, v = k + dk[number][head], v + dv[number][head]
            scores = q @ k.T / weights.dim**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
            mixed.append(torch.softmax(scores, dim=-1) @ v)
        x = x + torch.cat(mixed, dim=-1) @ layer.o.T
        h = norm(x, layer.norm2, weights.eps, rules)
        product = silu(h @ layer.gate.T, rules) * (h @ layer.up.T)
        x = x + (fraction(product, 2) if rules else product) @ layer.down.T
    return weights.head @ norm(x[-1], weights.norm, weights.eps, rules)
