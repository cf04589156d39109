"""A LLaMA text stack written out from its formulas, every position at once, nothing cached, open for interventions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Scores = Callable[[int, Tensor], Tensor]
Mlp = Callable[[int, Tensor, Tensor], Tensor]
After = Callable[[int, Tensor], None]


@dataclass
class Trace:
    """``hidden[i]`` [T, D] after i layers, before the final norm; ``weights[i]`` [H, T, T]; ``logits`` [T, V]."""

    hidden: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))


def rms(x: Tensor, norm: Any) -> Tensor:
    out: Tensor = norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    return out


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0..T-1 on ``[H, T, d]``, the two halves of d as pairs."""
    _, length, size = x.shape
    half = size // 2
    a, b = x[..., :half], x[..., half:]
    angles = torch.tensor([[p / theta ** (2 * i / size) for i in range(half)] for p in range(length)]).to(x.dtype)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@torch.no_grad()
def run(
    model: Any, embeds: Tensor, *, scores: Scores = lambda layer, s: s, mlp: Mlp = lambda layer, x, out: out,
    after: After = lambda layer, hidden: None,
) -> Trace:  # fmt: skip
    """One row ``embeds`` [T, D]; ``scores`` may change attention before the softmax, ``mlp`` the MLP's output.

    ``after`` sees the hidden states that leave each layer.
    """
    decoder = model.get_decoder()
    config = decoder.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    length = embeds.shape[0]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    trace = Trace([embeds])
    x = embeds
    for index, layer in enumerate(decoder.layers):
        h = rms(x, layer.input_layernorm)
        attention = layer.self_attn
        q = attention.q_proj(h).view(length, heads, size).transpose(0, 1)
        k = attention.k_proj(h).view(length, groups, size).transpose(0, 1)
        v = attention.v_proj(h).view(length, groups, size).transpose(0, 1)
        theta = config.rope_parameters["rope_theta"]
        q, k = rotated(q, theta), rotated(k, theta)
        k, v = (t.repeat_interleave(heads // groups, dim=0) for t in (k, v))
        raw = scores(index, q @ k.transpose(1, 2) / size**0.5)
        weights = torch.softmax(raw.masked_fill(future, float("-inf")), dim=-1)
        trace.weights.append(weights)
        x = x + attention.o_proj((weights @ v).transpose(0, 1).reshape(length, -1))
        h = rms(x, layer.post_attention_layernorm)
        out = layer.mlp.down_proj(torch.nn.functional.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
        x = x + mlp(index, h, out)
        trace.hidden.append(x)
        after(index, x)
    trace.logits = exit_logits(model, x)
    return trace


@torch.no_grad()
def exit_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits of hidden states that have not passed the final norm."""
    out: Tensor = model.lm_head(rms(hidden, model.get_decoder().norm))
    return out


@torch.no_grad()
def embedded(model: Any, ids: Tensor, pixels: Tensor) -> Tensor:
    """Merged embeddings ``[T, D]`` of one row ``ids`` [T]: words, and the projected picture at its placeholders."""
    config = model.config
    x: Tensor = model.get_input_embeddings()(ids)
    tower = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]
    seen = model.model.multi_modal_projector(tower[:, 1:])[0]
    for i, place in enumerate((ids == config.image_token_id).nonzero()[:, 0].tolist()):
        x[place] = seen[i]
    return x


@torch.no_grad()
def prompt(model: Any, inputs: Any, tokens: Tensor) -> Tensor:
    """Merged embeddings of a one-row prompt and ``tokens`` [1, t]."""
    words: Tensor = model.get_input_embeddings()(tokens[0])
    return torch.cat([embedded(model, inputs["input_ids"][0], inputs["pixel_values"]), words])
