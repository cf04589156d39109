"""The published detectors, word by word from transformers' own outputs, in loops and float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def run(model: Any, inputs: dict[str, Tensor], tokens: list[int]) -> Any:
    """The model's own forward over prompt and answer, with hidden states and attention (eager)."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        return model(**given, output_hidden_states=True, output_attentions=True)


def states(model: Any, out: Any) -> list[Tensor]:
    """``[S, D]`` before the final norm, of the embeddings and every layer; transformers' last one is normed already."""
    kept: list[Tensor] = [h[0] for h in out.hidden_states[:-1]]
    kept.append(out.last_raw[0])
    return kept


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))))


def softmax(row: Tensor) -> list[float]:
    top = float(row.max())
    parts = [math.exp(float(v) - top) for v in row]
    return [p / math.fsum(parts) for p in parts]


def log_probability(out: Any, start: int, tokens: list[int]) -> list[float]:
    return [math.log(softmax(out.logits[0, start - 1 + j])[t]) for j, t in enumerate(tokens)]


def negative_entropy(out: Any, start: int, tokens: list[int]) -> list[float]:
    return [
        math.fsum(p * math.log(p) for p in softmax(out.logits[0, start - 1 + j]) if p > 0) for j in range(len(tokens))
    ]


def logit_lens(model: Any, hidden: list[Tensor], media: list[int], tokens: list[int]) -> list[float]:
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    best = [0.0] * len(tokens)
    with torch.no_grad():
        for layer in hidden:
            for i in media:
                p = softmax(head(norm(layer[i])))
                best = [max(b, p[t]) for b, t in zip(best, tokens, strict=True)]
    return best


def attention_to_media(out: Any, start: int, media: list[int], count: int, layers: range) -> list[float]:
    found = []
    for j in range(count):
        total = 0.0
        for layer in layers:
            weights = out.attentions[layer][0]  # [H, S, S]
            for head in weights:
                total += math.fsum(float(head[start - 1 + j, i]) for i in media) / len(weights)
        found.append(total)
    return found


def concentration(out: Any, start: int, media: list[int], count: int, layers: range) -> list[float]:
    found = []
    for j in range(count):
        each = []
        for layer in layers:
            for head in out.attentions[layer][0]:
                row = [float(head[start - 1 + j, i]) for i in media]
                whole = math.fsum(row)
                each.append(math.fsum(w / whole * math.log(w / whole) for w in row))
        found.append(math.fsum(each) / len(each))
    return found


def contextual_lens(hidden: list[Tensor], start: int, media: list[int], count: int) -> list[float]:
    layer = hidden[len(hidden) // 2]
    return [max(cosine(layer[start + j], layer[i]) for i in media) for j in range(count)]


def glsim(model: Any, hidden: list[Tensor], start: int, media: list[int], tokens: list[int], k: int) -> list[float]:
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    with torch.no_grad():
        before, last = hidden[-2], norm(hidden[-1])
        found = []
        for j, token in enumerate(tokens):
            at = start - 1 + j
            likely = sorted(media, key=lambda i: softmax(head(last[i]))[token], reverse=True)[:k]
            local = math.fsum(cosine(before[at], last[i]) for i in likely) / k
            found.append(0.6 * cosine(before[start - 1], last[at]) + 0.4 * local)
    return found


def prefix_attention(out: Any, start: int, count: int) -> list[float]:
    found = []
    for j in range(count):
        each = [
            math.fsum(float(h[start - 1 + j, i]) for i in range(start, start + j)) for a in out.attentions for h in a[0]
        ]
        found.append(-math.fsum(each) / len(each))
    return found
