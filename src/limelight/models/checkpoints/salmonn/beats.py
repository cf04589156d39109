"""BEATs: a transformer over 16 x 16 patches of a filter bank, with gated relative positions and deep norm.

Source: Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", 2022 (arXiv 2212.09058), section 3.2; relative
position buckets of Raffel et al. (T5), gated by the query as in WavLM (arXiv 2110.13900, eq. 3-6); deep norm of Wang et
al. (arXiv 2203.00555). Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def buckets(count: int, total: int, furthest: int) -> Tensor:
    """Return the relative position bucket of each (query, key), int64 ``[count, count]``: half of them for keys after the
    query, exact for small distances, logarithmic for others."""
    place = torch.arange(count)
    distance = place[None] - place[:, None]
    half = total // 2
    exact = half // 2
    far = distance.abs().clamp_min(1).float()
    steps = exact + (torch.log(far / exact) / math.log(furthest / exact) * (half - exact)).long()
    near = torch.where(distance.abs() < exact, distance.abs(), steps.clamp_max(half - 1))
    return near + (distance > 0).long() * half


class BeatsAttention(nn.Module):
    """Attention with ``bias[query, key] * gate(query)`` added to the scores."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.gated = config.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` [B, T, D], ``bias`` [H, T, T], ``mask`` [B, 1, 1, T] True at real keys."""
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = bias[None]
        if self.gated:
            first, second = torch.sigmoid(self.grep_linear(q).view(b, self.heads, t, 2, 4).sum(-1)).chunk(2, dim=-1)
            scores = (first * (second * self.grep_a - 1) + 2) * scores
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(q.dtype).expand(b, -1, -1, -1))
        return self.out_proj(out.transpose(1, 2).reshape(b, t, -1))  # type: ignore[no-any-return]


class BeatsLayer(nn.Module):
    """Attention and feed-forward, each followed by a norm of the residual sum with a scaled-up residual (deep norm)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, wide = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, wide), nn.Linear(wide, width)
        self.scale = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        x = self.self_attn_layer_norm(x * self.scale + self.self_attn(x, bias, mask))
        return self.final_layer_norm(x * self.scale + self.fc2(functional.gelu(self.fc1(x))))  # type: ignore[no-any-return]


class Beats(nn.Module):
    """Filter bank ``[B, frames, 128]`` -> features ``[B, tokens, D]`` in time order, 8 tokens for every 16 frames.

    Differs from the published code: shorter rows of a batch are masked patch by patch, so that their features equal those
    without the batch, and are zero after their end.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.encoder_embed_dim, config.input_patch_size
        self.config = config
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, stride=patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width)
        self.pos_conv = nn.Conv1d(
            width, width, config.conv_pos, padding=config.conv_pos // 2, groups=config.conv_pos_groups
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.encoder_layers)])

    def forward(self, fbank: Tensor, mask: Tensor) -> Tensor:
        """Compute the features; ``mask`` [B, frames] is True at real frames, which precede the padding."""
        patch = self.config.input_patch_size
        count = mask.sum(-1) // patch
        x = self.patch_embedding(fbank[:, None, : int(count.max()) * patch])  # [B, C, patches, 8]
        real = (torch.arange(x.shape[2], device=x.device) < count[:, None]).repeat_interleave(x.shape[3], dim=1)
        x = self.post_extract_proj(self.layer_norm(x.flatten(2).transpose(1, 2)))
        x = x * real[..., None].to(x.dtype)
        around = self.pos_conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        x = self.encoder_norm(x + functional.gelu(around))
        table = buckets(x.shape[1], self.config.num_buckets, self.config.max_distance)
        bias = self.relative_attention_bias(table.to(x.device)).permute(2, 0, 1)
        seen = None if bool(real.all()) else real[:, None, None]
        for layer in self.layers:
            x = layer(x, bias, seen)
        return x * real[..., None].to(x.dtype)  # type: ignore[no-any-return]
