"""A CLIP tower and LLaVA's projector written out by hand, with AttnLRP as modified gradients: one head at a time, no modules.

``relevance`` is input x gradient of ``sum <projected tokens, g>``, every rule in the form ``x / f + const(x - x / f)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.llama import EPS, fraction


def constant_norm(x: Tensor, module: Any) -> Tensor:
    """LayerNorm whose standard deviation is a constant."""
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + module.eps).rsqrt().detach()
    return centred * scale * module.weight + module.bias


def identity(z: Tensor, act: Any) -> Tensor:
    value = act(z).detach()
    factor = value / (z.detach() + EPS)
    return z * factor + (value - z.detach() * factor)


def tokens(model: Any, pixels: Tensor, divisors: tuple[int, int, int]) -> Tensor:
    """Projected patches ``[patches, D]`` of one picture ``[3, H, W]``; a divisor of 0 stops the relevance."""
    tower, projector, config = model.model.vision_tower, model.model.multi_modal_projector, model.config.vision_config
    vision = getattr(tower, "vision_model", tower)
    embed, side = vision.embeddings, config.patch_size
    weight = embed.patch_embedding.weight.reshape(config.hidden_size, -1)
    rows = [
        weight @ pixels[:, top : top + side, left : left + side].reshape(-1)
        for top in range(0, config.image_size, side)
        for left in range(0, config.image_size, side)
    ]
    x = torch.stack([embed.class_embedding, *rows]) + embed.position_embedding.weight
    x = constant_norm(x, vision.pre_layrnorm)
    hidden = [x]
    heads, dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for layer in vision.encoder.layers:
        h, a = constant_norm(x, layer.layer_norm1), layer.self_attn
        mixed = []
        for head in range(heads):
            own = slice(head * dim, (head + 1) * dim)
            q, k, v = (h @ p.weight[own].T + p.bias[own] for p in (a.q_proj, a.k_proj, a.v_proj))
            q, k, v = (y.detach() if n == 0 else fraction(y, n) for y, n in zip((q, k, v), divisors, strict=True))
            mixed.append(torch.softmax(q @ k.T / dim**0.5, dim=-1) @ v)
        x = x + torch.cat(mixed, dim=-1) @ a.out_proj.weight.T + a.out_proj.bias
        h = constant_norm(x, layer.layer_norm2)
        z = h @ layer.mlp.fc1.weight.T + layer.mlp.fc1.bias
        x = x + identity(z, layer.mlp.activation_fn) @ layer.mlp.fc2.weight.T + layer.mlp.fc2.bias
        hidden.append(x)
    chosen = hidden[model.config.vision_feature_layer][1:]
    z = chosen @ projector.linear_1.weight.T + projector.linear_1.bias
    return identity(z, projector.act) @ projector.linear_2.weight.T + projector.linear_2.bias


def relevance(model: Any, pixels: Tensor, gradient: Tensor, divisors: tuple[int, int, int]) -> Tensor:
    """``[3, H, W]`` of ``sum <tokens, gradient>`` for a gradient ``[patches, D]``."""
    leaf = pixels.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((tokens(model, leaf, divisors) * gradient).sum(), leaf)
    return (leaf * grad).detach()
