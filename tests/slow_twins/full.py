"""Uncached forwards of a prompt and what was said so far: what every slow twin is built on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def grown(inputs: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The inputs with ``tokens`` [B, t] appended: mask 1, type 0 (text)."""
    out = dict(inputs)
    ids = inputs["input_ids"]
    out["input_ids"] = torch.cat([ids, tokens], dim=1)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and name != "input_ids" and value.shape == ids.shape:
            fill = torch.ones_like(tokens) if name == "attention_mask" else torch.zeros_like(tokens)
            out[name] = torch.cat([value, fill.to(value.dtype)], dim=1)
        elif name == "cross_attention_mask":
            out[name] = torch.cat([value, *[value[:, -1:]] * tokens.shape[1]], dim=1)
    return out


@torch.no_grad()
def forward(model: Any, inputs: Mapping[str, Any], tokens: Tensor, **options: Any) -> Any:
    """The model's output on the whole sequence, nothing cached."""
    return model(**grown(inputs, tokens), use_cache=False, **options)


def last_logits(model: Any, inputs: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """``[B, V]`` after ``tokens`` [B, t]."""
    logits: Tensor = forward(model, inputs, tokens).logits[:, -1]
    return logits


def words_only(model: Any, ids: Tensor, mask: Tensor, dropped: Tensor, tokens: Tensor) -> Tensor:
    """``[B, V]`` of each row's words alone: no padding, no media, the positions in ``dropped`` left out."""
    rows = []
    for row in range(ids.shape[0]):
        kept = [int(t) for t, m, d in zip(ids[row], mask[row], dropped[row], strict=True) if m and not d]
        prompt = torch.tensor([[*kept, *tokens[row].tolist()]])
        with torch.no_grad():
            rows.append(model(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=False).logits[0, -1])
    return torch.stack(rows)


def dropped_below(values: Tensor, logits: Tensor, beta: float) -> Tensor:
    """-inf where the softmax of ``logits`` is below ``beta`` times its largest entry."""
    out = values.clone()
    for row in range(logits.shape[0]):
        p = torch.softmax(logits[row], dim=0)
        for token in range(logits.shape[1]):
            if float(p[token]) < beta * float(p.max()):
                out[row, token] = float("-inf")
    return out
