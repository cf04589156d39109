"""DoLa and DeCo written out on transformers' own hidden states, one row and one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins.full import dropped_below, forward


def exits(
    model: Any, inputs: Mapping[str, Any], tokens: Tensor, layers: Sequence[int], *, normed: bool
) -> tuple[Tensor, Tensor]:
    """The model's logits ``[B, V]`` and those of its layers ``[L, B, V]``; not of the last, which is normed already."""
    out = forward(model, inputs, tokens, output_hidden_states=True)
    decoder = model.get_decoder()
    assert len(out.hidden_states) == len(decoder.layers) + 1
    assert max(layers) < len(decoder.layers)
    early = []
    for layer in layers:
        hidden = out.hidden_states[layer][:, -1]
        with torch.no_grad():
            early.append(model.lm_head(decoder.norm(hidden) if normed else hidden))
    return out.logits[:, -1], torch.stack(early)


def js(p: Tensor, q: Tensor) -> float:
    """Jensen-Shannon divergence of two distributions ``[V]``."""
    total = 0.0
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        m = (a + b) / 2
        total += (a * math.log(a / m) if a > 0 else 0.0) / 2 + (b * math.log(b / m) if b > 0 else 0.0) / 2
    return total


def released(p: Tensor, q: Tensor) -> float:
    """``(KL(m || p) + KL(m || q)) / 2``: what the authors' kl_div(log p, m) computes, up to the vocabulary's size."""
    total = 0.0
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        m = (a + b) / 2
        total += (m * math.log(m / a) + m * math.log(m / b)) / 2
    return total


def dola(final: Tensor, early: Tensor, beta: float, distance: Callable[[Tensor, Tensor], float] = released) -> Tensor:
    rows = []
    for row in range(final.shape[0]):
        p = torch.softmax(final[row], 0)
        distances = [distance(p, torch.softmax(e[row], 0)) for e in early]
        base = early[distances.index(max(distances)), row]
        rows.append(torch.log_softmax(final[row], 0) - torch.log_softmax(base, 0))
    return dropped_below(torch.stack(rows), final, beta)


def deco(final: Tensor, early: Tensor, alpha: float, top_k: int, top_p: float) -> Tensor:
    out = torch.full_like(final, float("-inf"))
    for row in range(final.shape[0]):
        p = torch.softmax(final[row], 0)
        order = sorted(range(len(p)), key=lambda v: -float(p[v]))[:top_k]
        kept, held = [], 0.0
        for v in order:
            kept.append(v)
            held += float(p[v])
            if held >= top_p:
                break
        best, layer = -1.0, -1
        for i, e in enumerate(early):
            q = torch.softmax(e[row], 0)
            for v in kept:
                if float(q[v]) > best:
                    best, layer = float(q[v]), i
        for v in kept:
            out[row, v] = final[row, v] + alpha * best * early[layer, row, v]
    return out
