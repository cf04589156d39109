"""The beam search by relevance, written from its description: whole forwards of ids, lists of floats, no cache."""

from __future__ import annotations

import math
from typing import Any

import torch

from limelight.relevance.attribute import attribute_generated


def logprobs(model: Any, inputs: Any, said: list[int]) -> list[float]:
    ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
    rest = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **rest).logits[0, -1]
    return torch.log_softmax(logits.double(), -1).tolist()


def mass(adapter: Any, inputs: Any, said: list[int], tau: float) -> float:
    """The media's part in the softmax over positions of the last token's relevance."""
    found = attribute_generated(adapter, inputs, said)[-1]
    scores = [float(x) / tau for x in found.scores.double()]
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    media = [i for s in found.spans if s.modality != "text" for i in range(s.start, s.stop)]
    return sum(weights[i] for i in media) / sum(weights)


def answer(adapter: Any, inputs: Any, *, beams: int, length: int, tau: float, most: int, final: int) -> list[int]:
    def over(said: list[int]) -> bool:
        return bool(said) and (said[-1] == final or len(said) >= most)

    def rank(beam: tuple[list[int], list[float], float]) -> tuple[float, float]:
        said, masses, total = beam
        return sum(masses) / len(masses), total / len(said)

    kept: list[tuple[list[int], list[float], float]] = [([], [], 0.0)]
    for _ in range(length):
        if all(over(said) for said, _, _ in kept):
            break
        grown = [b for b in kept if over(b[0])]
        for said, masses, total in kept:
            if over(said):
                continue
            chances = logprobs(adapter.model, inputs, said)
            for token in sorted(range(len(chances)), key=chances.__getitem__, reverse=True)[:beams]:
                longer = [*said, token]
                grown.append((longer, [*masses, mass(adapter, inputs, longer, tau)], total + chances[token]))
        kept = sorted(grown, key=rank, reverse=True)[:beams]
    said = kept[0][0]
    while not over(said):
        chances = logprobs(adapter.model, inputs, said)
        said = [*said, max(range(len(chances)), key=chances.__getitem__)]
    return said
