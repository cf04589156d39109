"""Whisper's encoder written out by hand, with AttnLRP as modified gradients: windows of frames, one head at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.clip import constant_norm, identity
from tests.slow_twins.llama import fraction


def convolved(x: Tensor, module: Any) -> Tensor:
    """``[channels, frames]`` through a convolution of width 3, padded by one frame on each side."""
    wide = torch.nn.functional.pad(x, (1, 1))
    starts = range(0, wide.shape[1] - 2, module.stride[0])
    return torch.stack([(module.weight * wide[None, :, t : t + 3]).sum((1, 2)) + module.bias for t in starts], dim=1)


def states(model: Any, frames: Tensor, divisors: tuple[int, int, int]) -> Tensor:
    """The encoder's states ``[positions, D]`` of log-mel frames ``[bins, frames]``; a divisor of 0 stops the relevance."""
    encoder, config = model.model.encoder, model.config
    act = torch.nn.functional.gelu
    x = identity(convolved(identity(convolved(frames, encoder.conv1), act), encoder.conv2), act)
    x = x.T + encoder.embed_positions.weight
    heads, dim = config.encoder_attention_heads, config.d_model // config.encoder_attention_heads
    for layer in encoder.layers:
        h, a = constant_norm(x, layer.self_attn_layer_norm), layer.self_attn
        mixed = []
        for head in range(heads):
            own = slice(head * dim, (head + 1) * dim)
            q, k, v = (
                h @ a.q_proj.weight[own].T + a.q_proj.bias[own],
                h @ a.k_proj.weight[own].T,
                h @ a.v_proj.weight[own].T,
            )
            v = v + a.v_proj.bias[own]
            q, k, v = (y.detach() if n == 0 else fraction(y, n) for y, n in zip((q, k, v), divisors, strict=True))
            mixed.append(torch.softmax(q @ k.T / dim**0.5, dim=-1) @ v)
        x = x + torch.cat(mixed, dim=-1) @ a.out_proj.weight.T + a.out_proj.bias
        h = constant_norm(x, layer.final_layer_norm)
        z = h @ layer.fc1.weight.T + layer.fc1.bias
        x = x + identity(z, layer.activation_fn) @ layer.fc2.weight.T + layer.fc2.bias
    return constant_norm(x, encoder.layer_norm)


def relevance(model: Any, frames: Tensor, gradient: Tensor, divisors: tuple[int, int, int]) -> Tensor:
    """``[bins, frames]`` of ``sum <states, gradient>`` for a gradient ``[positions, D]``."""
    leaf = frames.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((states(model, leaf, divisors) * gradient).sum(), leaf)
    return (leaf * grad).detach()
