"""Relevance of a Gemma 3n text stack written out from its formulas: one row, stream by stream, factors detached in place.

What is constant: 1/rms of norms, act(z) / z, the router's scores, and the quotients of lengths by which streams are
rescaled. The sparse gate has its plain gradient (it is homogeneous: g times the gradient is the gate itself).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 1e-10


def part(x: Tensor, share: float) -> Tensor:
    """``x`` with so much of its gradient."""
    return share * x + (1 - share) * x.detach()


def rms(x: Tensor, least: float = 0.0) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True).clamp(min=least).sqrt()


def norm(x: Tensor, m: Any) -> Tensor:
    out = x / (x.pow(2).mean(-1, keepdim=True) + m.eps).sqrt().detach()
    return out * m.weight if m.with_scale else out


def act(z: Tensor) -> Tensor:
    value = torch.nn.functional.gelu(z, approximate="tanh")
    ruled = z * (value / (z + EPS)).detach()
    return ruled + (value - ruled).detach()


def mlp(x: Tensor, m: Any) -> Tensor:
    g = m.gate_proj(x)
    if m.activation_sparsity:
        share = torch.tensor(m.activation_sparsity)  # the model asks in float32
        k = float(2**0.5 * torch.erfinv(2 * share - 1))
        g = torch.relu(g - g.mean(-1, keepdim=True) - k * g.std(-1, keepdim=True, unbiased=False))
    return m.down_proj(part(act(g) * m.up_proj(x), 0.5))


def turned(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0 .. T - 1 on ``[T, H, d]``; transformers takes the angles in float32."""
    length, _, size = x.shape
    half = size // 2
    rates = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    angles = (torch.arange(length).float()[:, None] * rates)[:, None]
    a, b, cos, sin = x[..., :half], x[..., half:], angles.cos().to(x), angles.sin().to(x)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(x: Tensor, m: Any, shared: dict[str, tuple[Tensor, Tensor]], cp: bool) -> Tensor:
    length, size = x.shape[0], m.head_dim
    theta = m.config.rope_parameters[m.layer_type]["rope_theta"]
    q = turned(norm(m.q_proj(x).view(length, -1, size), m.q_norm), theta)
    if m.is_kv_shared_layer:
        k, v = shared[m.layer_type]
    else:
        k = turned(norm(m.k_proj(x).view(length, -1, size), m.k_norm), theta)
        v = norm(m.v_proj(x).view(length, -1, size), m.v_norm)
        shared[m.layer_type] = k, v  # the last layer with its own is the one that is read
    q, k, v = (part(q, 0.0), part(k, 0.0), v) if cp else (part(q, 0.25), part(k, 0.25), part(v, 0.5))
    group = q.shape[1] // k.shape[1]
    seen = torch.ones(length, length).tril().bool()
    if m.is_sliding:
        seen &= ~torch.ones(length, length).tril(-m.sliding_window).bool()
    heads = []
    for head in range(q.shape[1]):
        scores = (q[:, head] @ k[:, head // group].T).masked_fill(~seen, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        heads.append(weights @ v[:, head // group])
    return m.o_proj(torch.cat(heads, dim=-1))


def scores_of(x: Tensor, m: Any) -> Tensor:
    """The router's ``[T, S]``, constants."""
    scores = m.modality_router(norm(x, m.router_norm) * m.router_input_scale)
    return torch.tanh(scores.detach().float()).to(x)  # in float32, as transformers does


def layer(
    streams: list[Tensor], own: Tensor, m: Any, shared: dict[str, tuple[Tensor, Tensor]], cp: bool
) -> list[Tensor]:
    count, active = len(streams), m.config.altup_active_idx
    mix = m.altup.prediction_coefs(scores_of(streams[active], m.altup)).reshape(-1, count, count)
    guess = [streams[j] + sum(mix[:, j, i, None] * streams[i] for i in range(count)) for j in range(count)]
    x = guess[active]
    h = norm(x, m.input_layernorm)
    branch = h + norm(m.laurel.linear_right(m.laurel.linear_left(h)), m.laurel.post_laurel_norm)
    x = x + norm(attention(h, m.self_attn, shared, cp), m.post_attention_layernorm)
    x = (x + branch) / 2**0.5
    x = x + norm(mlp(norm(x, m.pre_feedforward_layernorm), m.mlp), m.post_feedforward_layernorm)
    gain = m.altup.correction_coefs(scores_of(x, m.altup)) + 1
    out = [guess[i] + gain[:, i, None] * (x - guess[active]) for i in range(count)]
    y = out[active] * (m.altup.correct_output_scale if m.config.altup_correct_scale else 1.0)
    y = part(act(m.per_layer_input_gate(y)) * own, 0.5)
    y = norm(m.per_layer_projection(y), m.post_per_layer_input_norm)
    return [out[0], *(o + y for o in out[1:])]


def rescaled(x: Tensor, like: Tensor) -> Tensor:
    return x * (rms(like) / rms(x, 1e-5)).detach()


def attribute(model: Any, embeds: Tensor, constant: Tensor, target: int, cp: bool) -> tuple[Tensor, Tensor]:
    """Relevance ``[T]`` of one row for a logit, and the logit.

    ``embeds [T, D + L * P]``: embeddings and the layers' own inputs behind them; ``constant [T, L, P]`` is added to these.
    """
    decoder = model.model.language_model
    leaf = embeds.detach().clone().requires_grad_(True)
    x = leaf[:, : decoder.hidden_size]
    shape = (len(x), len(decoder.layers), -1)
    own = decoder.per_layer_model_projection(x).reshape(shape) * decoder.per_layer_projection_scale
    own = norm(own, decoder.per_layer_projection_norm) + leaf[:, decoder.hidden_size :].reshape(shape) + constant
    own = own * decoder.per_layer_input_scale
    streams = [x, *(rescaled(p(x), x) for p in decoder.altup_projections)]
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    for i, block in enumerate(decoder.layers):
        streams = layer(streams, own[:, i], block, shared, cp)
    back = [rescaled(p(s), streams[0]) for p, s in zip(decoder.altup_unembed_projections, streams[1:], strict=True)]
    mean = sum(back, streams[0]) / len(streams)
    raw = model.lm_head(norm(mean, decoder.norm))[-1, target]
    cap = model.config.get_text_config().final_logit_softcapping
    capped = torch.tanh(raw / cap) * cap
    logit = raw * (capped / (raw + EPS)).detach()
    (gradient,) = torch.autograd.grad(logit, leaf)
    return (gradient * leaf.detach()).sum(-1), capped.detach()
