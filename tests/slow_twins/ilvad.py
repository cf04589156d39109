"""ILVAD written out: salient positions from the plain model's first tokens; attention rescaled after the softmax."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import grouped, stack


def spread(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean - 3 * deviation, mean + 3 * deviation


def clip(values: list[float]) -> list[float]:
    low, high = spread(values)
    return [min(high, max(low, v)) for v in values]


def best(values: list[float]) -> list[int]:
    """The half of the heads with the largest values."""
    return sorted(range(len(values)), key=lambda h: -values[h])[: max(1, len(values) // 2)]


def saliency(model: Any, embeds: Tensor, places: list[int], tau: float, pilot: int) -> dict[int, float]:
    """S of every media position, in [0, 1]."""
    prompt = len(embeds)
    table = model.get_input_embeddings().weight
    for _ in range(pilot - 1):
        token = int(stack.run(model, embeds).logits[-1].argmax())
        embeds = torch.cat([embeds, table[token][None]])
    layers = []
    for weights in stack.run(model, embeds).weights:
        total = dict.fromkeys(places, 0.0)
        for query in range(prompt, len(embeds)):
            heads = best([sum(float(w[query, i]) for i in places) for w in weights])
            for i in places:
                total[i] += sum(float(weights[h, query, i]) for h in heads) / len(heads) / (pilot - 1)
        layers.append(total)
    marked = [{i: float(t[i] > tau * sum(t.values()) / len(t)) for i in places} for t in layers]
    over = {i: sum(t[i] for t in layers) / len(layers) for i in places}
    mean = sum(over.values()) / len(over)
    rises = [sum(max(0.0, b[i] - a[i]) for a, b in itertools.pairwise(marked)) * (over[i] > mean) for i in places]
    if max(rises) == min(rises):
        return dict.fromkeys(places, 0.0)
    rises = clip(rises)
    return {i: (r - min(rises)) / (max(rises) - min(rises)) for i, r in zip(places, rises, strict=True)}


def ilvad(
    model: Any, embeds: Tensor, media: list[bool], *, alpha: float, beta: float | None, tau: float, pilot: int,
    layers: range,
) -> list[Tensor]:  # fmt: skip
    """Logits ``[V]`` after the prompt and after every token."""
    prompt, places = len(media), [i for i, m in enumerate(media) if m]
    salient = saliency(model, embeds[:prompt], places, tau, pilot)
    scores: dict[int, float] = {}

    def weights(call: grouped.Call, w: Tensor) -> Tensor:
        out = w.clone()
        chosen: list[int] = []
        for row, query in enumerate(call.at):
            towards = [sum(alpha * salient[i] * float(h[row, i]) for i in places if i <= query) for h in w]
            share = [sum(float(h[row, i]) for i in places if i <= query) for h in w]
            chosen = best([t / (s + 1e-8) for t, s in zip(towards, share, strict=True)])
            if query > places[0] and query not in places:
                scores[query] = scores.get(query, 0.0) + sum(towards[h] for h in chosen) / len(chosen)
        if call.layer not in layers:
            return out
        for head in chosen:
            for i in places:
                out[head, -1, i] *= math.exp(alpha * salient[i])
        if beta is not None:
            last = call.at.stop - 1
            text = [i for i in range(places[0], last) if i not in places]
            values = [scores[i] for i in text]
            if len(values) > 1 and max(values) > min(values):
                low, high = min(values), max(values)
                for head in best([sum(float(h[-1, i]) for i in (*text, last)) for h in w]):
                    for i, value in zip(text, clip(values), strict=True):
                        out[head, -1, i] *= (value - low) / (high - low) + beta
        out[:, -1] /= out[:, -1].sum(-1, keepdim=True)
        return out

    return grouped.run(model, embeds, prompt, weights=weights)[0]
