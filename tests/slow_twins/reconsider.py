"""Reconsider written from its description: every step a prefill of prompt and answer, rules in plain Python."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from limelight.relevance.forward.stream import DualStream, modality_channel


def measured(adapter: Any, tensors: Any, said: list[int]) -> tuple[list[float], list[float]]:
    """Log-probabilities and z of every token behind prompt and answer."""
    call = adapter.capture(tensors)
    media = call.modality(adapter.modality_ids(tensors)) > 0
    with torch.no_grad():
        for token in said:
            call = call.appended(adapter.embed(torch.tensor([[token]])))
            media = torch.cat([media, torch.zeros(1, 1, dtype=torch.bool)], dim=1)
    dual = DualStream(adapter, call, [modality_channel(media, call.mask)])
    logits, phi = dual.heads(dual.prefill())
    values = phi[0, 0].double().tolist()
    mean, spread = statistics.fmean(values), statistics.pstdev(values)
    return torch.log_softmax(logits[0].double(), -1).tolist(), [(v - mean) / spread for v in values]


def answer(adapter: Any, tensors: Any, *, threshold: float, margin: float, possible: float, most: int) -> list[int]:
    """Token ids of the answer, at most ``most``."""
    tokenizer, final = adapter.tokenizer, adapter.model.generation_config.eos_token_id
    spelled = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    raw = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))

    def word(i: int) -> bool:
        return i not in special and any(c.isalnum() for c in spelled[i])

    def begins(i: int, said: list[int]) -> bool:
        return word(i) and (not said or not word(said[-1]) or raw[i][0] in "Ġ▁")

    def end(i: int) -> bool:
        return i == final or (i not in special and spelled[i].strip() in (".", "!", "?"))

    said: list[int] = []
    start = 0
    while len(said) < most and (not said or said[-1] != final):
        logp, z = measured(adapter, tensors, said)
        choice = max(range(len(logp)), key=logp.__getitem__)
        rivals = [
            i
            for i, lp in enumerate(logp)
            if i != choice and lp >= math.log(possible) and i < len(spelled) and begins(i, said)
        ]
        if begins(choice, said) and rivals and z[choice] < threshold:
            good = [i for i in rivals if z[i] >= threshold - margin and i not in said[start:]]
            if good:
                choice = max(good, key=logp.__getitem__)
            else:
                for place in range(len(said) - 1, start, -1):
                    logp, _ = measured(adapter, tensors, said[:place])
                    ends = [i for i in range(len(spelled)) if end(i)]
                    if max(logp[i] for i in ends) >= math.log(possible):
                        said, choice = said[:place], max(ends, key=logp.__getitem__)
                        break
        said.append(choice)
        if end(choice):
            start = len(said)
    return said
