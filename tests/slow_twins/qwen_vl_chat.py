"""Qwen-VL-Chat from its published formulas, straight from a published state dict, one row at a time, in float64.

Written from Bai et al. 2023 (arXiv 2308.12966) and the layout of the published weights: fused projections, rotary
embedding by pairs (i, i + d / 2), the tower's projection laid out head by head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def norm(x: Tensor, w: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * w + b


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """One head: [T, d]."""
    scores = q @ k.T / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    return scores.softmax(-1) @ v


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def resized(table: Tensor, cells: int) -> Tensor:
    side, want = math.isqrt(len(table)), math.isqrt(cells)
    grid = table.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    out = torch.nn.functional.interpolate(grid, size=(want, want), mode="bicubic", align_corners=False)
    return table if side == want else out.permute(0, 2, 3, 1).reshape(cells, -1).double()


def see(w: State, visual: dict[str, Any], pixels: Tensor) -> Tensor:
    """[3, side, side] -> [queries, D]."""
    p, heads = visual["patch_size"], visual["heads"]
    kernel = w["transformer.visual.conv1.weight"]
    cells = []
    for i in range(pixels.shape[1] // p):
        for j in range(pixels.shape[2] // p):
            patch = pixels[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
            cells.append((kernel * patch).sum((1, 2, 3)))
    x = torch.stack(cells)
    at = "transformer.visual."
    x = x + resized(w[f"{at}positional_embedding"], len(x))
    x = norm(x, w[f"{at}ln_pre.weight"], w[f"{at}ln_pre.bias"])
    for n in range(visual["layers"]):
        b = f"{at}transformer.resblocks.{n}."
        h = norm(x, w[f"{b}ln_1.weight"], w[f"{b}ln_1.bias"])
        mixed = h @ w[f"{b}attn.in_proj.weight"].T + w[f"{b}attn.in_proj.bias"]
        d = x.shape[-1] // heads
        out = [attend(*mixed[:, 3 * d * i : 3 * d * (i + 1)].split(d, -1), causal=False) for i in range(heads)]
        x = x + torch.cat(out, -1) @ w[f"{b}attn.out_proj.weight"].T + w[f"{b}attn.out_proj.bias"]
        h = norm(x, w[f"{b}ln_2.weight"], w[f"{b}ln_2.bias"])
        h = gelu(h @ w[f"{b}mlp.c_fc.weight"].T + w[f"{b}mlp.c_fc.bias"])
        x = x + h @ w[f"{b}mlp.c_proj.weight"].T + w[f"{b}mlp.c_proj.bias"]
    a = f"{at}attn_pool."
    values = norm(x @ w[f"{a}kv_proj.weight"].T, w[f"{a}ln_kv.weight"], w[f"{a}ln_kv.bias"])
    place = w[f"{a}pos_embed"]
    queries = norm(w[f"{a}query"], w[f"{a}ln_q.weight"], w[f"{a}ln_q.bias"]) + place
    keys = values + resized(place, len(values))
    ws, bs = w[f"{a}attn.in_proj_weight"].chunk(3), w[f"{a}attn.in_proj_bias"].chunk(3)
    q, k, v = (y @ m.T + c for y, m, c in zip((queries, keys, values), ws, bs, strict=True))
    d = q.shape[-1] // max(1, visual["output_dim"] // visual.get("head_width", 128))
    out = [attend(q[:, i : i + d], k[:, i : i + d], v[:, i : i + d], causal=False) for i in range(0, q.shape[-1], d)]
    x = torch.cat(out, -1) @ w[f"{a}attn.out_proj.weight"].T + w[f"{a}attn.out_proj.bias"]
    return norm(x, w[f"{at}ln_post.weight"], w[f"{at}ln_post.bias"]) @ w[f"{at}proj"]


def rotated(x: Tensor, base: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(len(x)).double()[:, None] * base ** (-torch.arange(half).double() / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def logits(state: State, config: dict[str, Any], ids: list[int], pixels: Tensor) -> Tensor:
    """[T, V] of one row; ``pixels`` [n, 3, side, side] for its pictures in order."""
    w = {k: v.double() for k, v in state.items()}
    x = w["transformer.wte.weight"][ids]
    start = config["visual"]["image_start_id"]
    for n, a in enumerate([i for i, t in enumerate(ids) if t == start]):
        b = ids.index(start + 1, a)
        x[a + 1 : b] = see(w, config["visual"], pixels[n].double())
    heads = config["num_attention_heads"]
    d, base, eps = x.shape[-1] // heads, config["rotary_emb_base"], config["layer_norm_epsilon"]
    for n in range(config["num_hidden_layers"]):
        b = f"transformer.h.{n}."
        h = rms(x, w[f"{b}ln_1.weight"], eps) @ w[f"{b}attn.c_attn.weight"].T + w[f"{b}attn.c_attn.bias"]
        q, k, v = h.chunk(3, -1)
        out = []
        for i in range(0, q.shape[-1], d):
            here = slice(i, i + d)
            out.append(attend(rotated(q[:, here], base), rotated(k[:, here], base), v[:, here], causal=True))
        x = x + torch.cat(out, -1) @ w[f"{b}attn.c_proj.weight"].T
        h = rms(x, w[f"{b}ln_2.weight"], eps)
        gate = h @ w[f"{b}mlp.w2.weight"].T
        x = x + (h @ w[f"{b}mlp.w1.weight"].T * gate * gate.sigmoid()) @ w[f"{b}mlp.c_proj.weight"].T
    return rms(x, w["transformer.ln_f.weight"], eps) @ w["lm_head.weight"].T
