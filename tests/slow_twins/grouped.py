"""A LLaMA text stack written out forward by forward: the prompt at once, then token by token, keys and values kept in lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.stack import exit_logits, rms, rotated


@dataclass
class Call:
    """One layer's attention in one forward. ``at``: positions of the queries; ``keys``/``values`` [H, K, d] as cached."""

    layer: int
    at: range
    entering: Tensor
    normed: Tensor
    keys: Tensor
    values: Tensor


Change = Callable[[Call, Tensor], Tensor]


def same(call: Call, x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def run(
    model: Any, embeds: Tensor, prompt: int, *, scores: Change = same, weights: Change = same, update: Change = same,
    mlp: Callable[[int, Tensor], Tensor] = lambda layer, out: out,
    kept: Callable[[Call, Tensor], tuple[Tensor, Tensor]] = lambda call, w: (call.keys, call.values),
) -> tuple[list[Tensor], list[list[Tensor]]]:  # fmt: skip
    """One row ``embeds`` [T, D]. Per forward: logits ``[V]`` of its last position, and all layers' outputs ``[n, D]``.

    ``scores`` [H, n, K] before the mask and softmax, ``weights`` after it, ``update`` [n, D] the attention's output, ``mlp``
    [n, D] the MLP's; ``kept`` returns the keys and values that later forwards see.
    """
    decoder = model.get_decoder()
    config = decoder.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    theta = config.rope_parameters["rope_theta"]
    past: list[tuple[Tensor, Tensor]] = []
    logits, outputs = [], []
    for at in (range(prompt), *(range(i, i + 1) for i in range(prompt, len(embeds)))):
        x = embeds[at.start : at.stop]
        found = []
        for index, layer in enumerate(decoder.layers):
            h = rms(x, layer.input_layernorm)
            attention = layer.self_attn

            def shaped(projected: Tensor, count: int) -> Tensor:
                return projected.view(projected.shape[0], count, size).transpose(0, 1)

            def placed(states: Tensor, start: int = at.start) -> Tensor:
                return rotated(torch.nn.functional.pad(states, (0, 0, start, 0)), theta)[:, start:]

            q = placed(shaped(attention.q_proj(h), heads))
            k = placed(shaped(attention.k_proj(h), groups)).repeat_interleave(heads // groups, 0)
            v = shaped(attention.v_proj(h), groups).repeat_interleave(heads // groups, 0)
            if index < len(past):
                k, v = torch.cat([past[index][0], k], 1), torch.cat([past[index][1], v], 1)
            call = Call(index, at, x, h, k, v)
            raw = scores(call, q @ k.transpose(1, 2) / size**0.5)
            future = torch.arange(k.shape[1])[None] > torch.tensor(list(at))[:, None]
            w = weights(call, torch.softmax(raw.masked_fill(future, float("-inf")), -1))
            states = kept(call, w)
            if index < len(past):
                past[index] = states
            else:
                past.append(states)
            x = x + update(call, attention.o_proj((w @ v).transpose(0, 1).reshape(len(at), -1)))
            h = rms(x, layer.post_attention_layernorm)
            out = layer.mlp.down_proj(torch.nn.functional.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
            x = x + mlp(index, out)
            found.append(x)
        outputs.append(found)
        logits.append(exit_logits(model, x[-1]))
    return logits, outputs
