"""SALMONN's own parts from their published formulas, straight from published state dicts, one sound at a time, float64.

BEATs: arXiv 2212.09058 with the relative positions of T5 and WavLM's gate. Q-Former: BERT's attention with a query a
window. Filter bank: Kaldi's documentation of ``compute-fbank-feats``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.qwen_vl_chat import attend, gelu, norm

State = dict[str, Tensor]


def line(w: State, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)


def kaldi(samples: Tensor, bins: int = 128) -> Tensor:
    """Log filter bank [frames, bins] of 16 kHz samples in [-1, 1], normalised as BEATs' authors do."""
    x = samples.double() * 2**15
    low, high = mel(20.0), mel(8000.0)
    step = (high - low) / (bins + 1)
    filters = torch.zeros(bins, 257, dtype=torch.float64)
    for b in range(bins):
        left, middle, right = low + b * step, low + (b + 1) * step, low + (b + 2) * step
        for k in range(256):  # Kaldi leaves the Nyquist bin out
            m = mel(k * 16000 / 512)
            if left < m < right:
                filters[b, k] = (m - left) / (middle - left) if m <= middle else (right - m) / (right - middle)
    n = torch.arange(400, dtype=torch.float64)
    window = (0.5 - 0.5 * torch.cos(2 * math.pi * n / 399)) ** 0.85
    rows = []
    for start in range(0, len(x) - 399, 160):
        frame = x[start : start + 400]
        frame = frame - frame.mean()
        frame = torch.cat([frame[:1] * (1 - 0.97), frame[1:] - 0.97 * frame[:-1]]) * window
        power = torch.fft.rfft(frame, n=512).abs() ** 2
        rows.append(torch.log((filters @ power).clamp_min(1.192092955078125e-07)))
    return (torch.stack(rows) - 15.41663) / (2 * 6.55582)


def bucket(distance: int, total: int, furthest: int) -> int:
    half = total // 2
    start, away = (half if distance > 0 else 0), abs(distance)
    exact = half // 2
    if away < exact:
        return start + away
    far = exact + int(math.log(away / exact) / math.log(furthest / exact) * (half - exact))
    return start + min(far, half - 1)


def beats(state: State, cfg: dict[str, Any], bank: Tensor) -> Tensor:
    """[frames, 128] -> [tokens, D]."""
    w = {k: v.double() for k, v in state.items()}
    p, heads = cfg["input_patch_size"], cfg["encoder_attention_heads"]
    cells = []
    for i in range(len(bank) // p):
        for j in range(bank.shape[1] // p):
            patch = bank[i * p : (i + 1) * p, j * p : (j + 1) * p]
            cells.append((w["patch_embedding.weight"][:, 0] * patch).sum((1, 2)))
    x = line(w, "post_extract_proj", normed(w, "layer_norm", torch.stack(cells)))
    v, g = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    kernel = torch.stack([g[0, 0, k] * v[..., k] / v[..., k].norm() for k in range(v.shape[-1])], -1)
    taps, width = kernel.shape[-1], kernel.shape[1]
    padded = torch.cat([torch.zeros(taps // 2, x.shape[1]), x, torch.zeros(taps, x.shape[1])]).double()
    around = torch.zeros_like(x)
    for t in range(len(x)):
        for c in range(x.shape[1]):
            group = c // (x.shape[1] // cfg["conv_pos_groups"]) * width
            around[t, c] = (kernel[c].T * padded[t : t + taps, group : group + width]).sum()
    x = normed(w, "encoder.layer_norm", x + gelu(around + w["encoder.pos_conv.0.bias"]))
    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    places = torch.tensor(
        [[bucket(k - q, cfg["num_buckets"], cfg["max_distance"]) for k in range(len(x))] for q in range(len(x))]
    )
    alpha = (2 * cfg["encoder_layers"]) ** 0.25
    for n in range(cfg["encoder_layers"]):
        a = f"encoder.layers.{n}.self_attn."
        q, k, v = (line(w, f"{a}{name}_proj", x) for name in "qkv")
        d = x.shape[1] // heads
        out = []
        for h in range(heads):
            here = slice(h * d, (h + 1) * d)
            eight = line(w, f"{a}grep_linear", q[:, here])
            first, second = torch.sigmoid(eight[:, :4].sum(-1)), torch.sigmoid(eight[:, 4:].sum(-1))
            gate = first * (second * w[f"{a}grep_a"][0, h, 0, 0] - 1) + 2
            scores = q[:, here] @ k[:, here].T / math.sqrt(d) + gate[:, None] * table[places][..., h]
            out.append(scores.softmax(-1) @ v[:, here])
        x = normed(w, f"{a[:-1]}_layer_norm", alpha * x + line(w, f"{a}out_proj", torch.cat(out, -1)))
        b = f"encoder.layers.{n}."
        x = normed(w, f"{b}final_layer_norm", alpha * x + line(w, f"{b}fc2", gelu(line(w, f"{b}fc1", x))))
    return x


def bert(w: State, at: str, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """One BERT attention block: attention, then the norm of the residual sum."""
    q = line(w, f"{at}.self.query", queries)
    k, v = (line(w, f"{at}.self.{n}", keys) for n in ("key", "value"))
    d = q.shape[-1] // heads
    out = [attend(q[:, i : i + d], k[:, i : i + d], v[:, i : i + d], causal=False) for i in range(0, q.shape[-1], d)]
    out = line(w, f"{at}.output.dense", torch.cat(out, -1))
    return normed(w, f"{at}.output.LayerNorm", out + queries, 1e-12)


def bridge(state: State, speech: Tensor, audio: Tensor, window: int = 17) -> Tensor:
    """Whisper's [T, D] and BEATs' [T', D'] -> [positions, H]."""
    w = {k: v.double() for k, v in state.items()}
    speech, audio = normed(w, "ln_speech", speech), normed(w, "ln_audio", audio)
    audio = torch.cat([audio, torch.zeros(max(0, len(speech) - len(audio)), audio.shape[1])])
    speech = torch.cat([speech, torch.zeros(max(0, len(audio) - len(speech)), speech.shape[1])])
    both = torch.cat([speech, audio], -1).double()
    layers = len({n.split(".")[4] for n in w if ".encoder.layer." in n})
    heads = w["speech_query_tokens"].shape[-1] // 64
    out = []
    for start in range(0, len(both) - window + 1, window):
        x = normed(w, "speech_Qformer.bert.embeddings.LayerNorm", w["speech_query_tokens"][0], 1e-12)
        for n in range(layers):
            at = f"speech_Qformer.bert.encoder.layer.{n}"
            x = bert(w, f"{at}.attention", x, x, heads)
            x = bert(w, f"{at}.crossattention", x, both[start : start + window], heads)
            h = line(w, f"{at}.output_query.dense", gelu(line(w, f"{at}.intermediate_query.dense", x)))
            x = normed(w, f"{at}.output_query.LayerNorm", h + x, 1e-12)
        out.append(line(w, "speech_llama_proj", x))
    return torch.cat(out)
