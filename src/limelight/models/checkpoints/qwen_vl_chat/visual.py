"""The vision encoder: CLIP's encoder without a class token, and one cross-attention of learned queries to all patches.

Source: Bai et al., "Qwen-VL", 2023 (arXiv 2308.12966), section 2.1: ViT-bigG of OpenCLIP, position-aware resampler.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.compat import CLIPEncoder


def resized(table: Tensor, count: int) -> Tensor:
    """Resize position embeddings of a square grid ``[n, D]`` to ``count`` cells by bicubic interpolation."""
    side, wanted = math.isqrt(table.shape[0]), math.isqrt(count)
    if side == wanted:
        return table
    grid = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


class Resampler(nn.Module):
    """Cross-attention of ``n`` learned queries to the patches: ``[B, patches, width]`` -> ``[B, n, D]``."""

    def __init__(self, queries: int, width: int, out: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, out))
        self.pos_embed = nn.Parameter(torch.zeros(queries, out), requires_grad=False)
        self.kv_proj = nn.Linear(width, out, bias=False)
        self.attn = nn.MultiheadAttention(out, heads, batch_first=True)
        self.ln_q = nn.LayerNorm(out, eps=1e-6)
        self.ln_kv = nn.LayerNorm(out, eps=1e-6)

    def forward(self, patches: Tensor) -> Tensor:
        values = self.ln_kv(self.kv_proj(patches))
        keys = values + resized(self.pos_embed, patches.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(patches.shape[0], -1, -1)
        out: Tensor = self.attn(queries, keys, values, need_weights=False)[0]
        return out


class QwenVisual(nn.Module):
    """Vision encoder and resampler: pixels ``[B, 3, side, side]`` -> ``[B, queries, hidden]``."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        vision, width = config.vision_config, config.vision_config.hidden_size
        self.conv1 = nn.Conv2d(3, width, vision.patch_size, stride=vision.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(config.image_seq_length, width))
        self.ln_pre = nn.LayerNorm(width, eps=1e-6)
        self.encoder = CLIPEncoder(vision)
        self.attn_pool = Resampler(config.image_seq_length, width, config.output_dim, config.resampler_heads)
        self.ln_post = nn.LayerNorm(config.output_dim, eps=1e-6)
        self.proj = nn.Parameter(torch.zeros(config.output_dim, config.output_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resized(self.positional_embedding, x.shape[1]))
        x = self.encoder(inputs_embeds=x).last_hidden_state
        out: Tensor = self.ln_post(self.attn_pool(x)) @ self.proj
        return out
