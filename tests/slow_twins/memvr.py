"""MemVR written out on a LLaMA stack: every cached forward as a group of positions in one uncached one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import stack


def uncertainty(logits: Tensor) -> float:
    """Entropy of the ten likeliest tokens ``[V]`` among themselves over log 10."""
    best = sorted(logits.tolist(), reverse=True)[:10]
    weights = [math.exp(v - best[0]) for v in best]
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights) / math.log(10)


class Groups:
    """Positions that one cached forward computed together: the prompt, then each token."""

    def __init__(
        self, model: Any, memory: Tensor, prompt: int, length: int, ratio: float, threshold: float, layers: range
    ):
        self.model, self.memory, self.ratio, self.threshold, self.layers = model, memory, ratio, threshold, layers
        self.groups = [range(prompt), *(range(i, i + 1) for i in range(prompt, length))]
        self.fired: list[int | None] = [None] * len(self.groups)

    def decide(self, layer: int, hidden: Tensor) -> None:
        """After ``layer``: who is uncertain for the first time looks again in the next one."""
        if layer not in self.layers:
            return
        for i, group in enumerate(self.groups):
            logits = stack.exit_logits(self.model, hidden[group[-1]])
            if self.fired[i] is None and uncertainty(logits) > self.threshold:
                self.fired[i] = layer + 1

    def look(self, layer: int, x: Tensor, out: Tensor) -> Tensor:
        mixed = out.clone()
        for i, group in enumerate(self.groups):
            if self.fired[i] != layer:
                continue
            own = torch.tensor(list(group))
            seen = torch.zeros_like(out[own])
            for v in self.memory:
                seen += (x[own] @ v)[:, None] * v
            scale = float(out[own].abs().mean()) / float(seen.abs().mean())
            mixed[own] = (1 - self.ratio) * out[own] + self.ratio * scale * seen
        return mixed


def memvr(
    model: Any,
    inputs: Mapping[str, Any],
    media_mask: Tensor,
    tokens: Tensor,
    ratio: float,
    threshold: float,
    layers: range,
) -> tuple[Tensor, bool]:
    """``[1, V]`` after ``tokens`` [1, t], and whether the last forward looked again."""
    embeds = stack.prompt(model, inputs, tokens)
    prompt = media_mask.shape[1]
    groups = Groups(model, embeds[:prompt][media_mask[0]], prompt, len(embeds), ratio, threshold, layers)
    trace = stack.run(model, embeds, mlp=groups.look, after=groups.decide)
    return trace.logits[-1:], groups.fired[-1] is not None
