"""OPERA written out: every continuation in full, whole attention maps, products of plain numbers, states copied."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.slow_twins import stack


class Opera:
    """Searches one prompt of a tiny LLaVA; ``returns`` lists the places it went back to."""

    def __init__(
        self, model: Any, inputs: Mapping[str, Any], media_mask: Tensor, length: int, *, beams: int, candidates: int,
        sigma: float, threshold: int, weight: float, warmup: int, eos: int = -1,
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.length, self.eos = model, inputs, length, eos
        self.seen = media_mask[0].nonzero()[:, 0].tolist()
        self.start = media_mask.shape[1]
        self.beams, self.candidates, self.sigma = beams, candidates, sigma
        self.threshold, self.weight, self.warmup = threshold, weight, warmup
        self.known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.returns: list[int] = []

    def forward(self, tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Logits ``[V]`` and the last layer's attention ``[T, T]``, largest over heads, rows summing to 1."""
        if tokens not in self.known:
            said = torch.tensor([list(tokens)], dtype=torch.long)
            trace = stack.run(self.model, stack.prompt(self.model, self.inputs, said))
            largest = trace.weights[-1].max(dim=0).values
            self.known[tokens] = trace.logits[-1], largest / largest.sum(-1, keepdim=True)
        return self.known[tokens]

    def summary(self, tokens: tuple[int, ...]) -> tuple[float, int, float]:
        """phi, its place, and the last token's attention to the picture."""
        attention = self.forward(tokens)[1]
        local = self.sigma * attention[self.start :, self.start :]
        products = []
        for j in range(len(tokens)):
            product = 1e-7
            for r in range(j, len(tokens)):
                product *= float(local[r, j])
            products.append(product)
        place = products.index(max(products))
        return products[place], place, sum(float(attention[-1, i]) for i in self.seen)

    def search(self) -> tuple[int, ...]:
        beams: list[tuple[tuple[int, ...], float, list[int]]] = [((), 0.0, [])]
        ended: list[tuple[float, tuple[int, ...]]] = []
        history: dict[int, Any] = {}
        taken: dict[int, set[tuple[int, int]]] = {}
        barred: dict[int, set[tuple[int, int]]] = {}
        visits: Counter[int] = Counter()
        while beams:
            if len(ended) >= self.beams:
                worst = sorted(ended)[-self.beams][0]
                if worst >= max(b[1] for b in beams) / max(1, len(beams[0][0])):
                    break
            n = len(beams[0][0])
            history[n] = copy.deepcopy((beams, ended))
            for later in [k for k in barred if k > n]:
                del barred[later]
            options: list[tuple[float, int, int]] = []
            looked = []
            for tokens, _, peaks in beams:
                logits = self.forward(tokens)[0]
                best = sorted(range(len(logits)), key=lambda v: -float(logits[v]))[: self.candidates]
                found = [self.summary((*tokens, v)) for v in best]
                peaks.append(common([f[1] for f in found]))
                looked.append((best, [float(logits[v]) for v in best], found))
            place = common([b[2][-1] for b in beams])
            back = self.way_back(place, beams, visits, n)
            if back is not None:
                self.returns.append(back)
                beams, ended = copy.deepcopy(history[back])
                n = back
                barred.setdefault(n, set()).update(taken[n])
                for later in [k for k in barred if k > n]:
                    del barred[later]
                for i, (tokens, score, _) in enumerate(beams):
                    logits = self.forward(tokens)[0].clone()
                    for parent, v in barred[n]:
                        if parent == i:
                            logits[v] = float("-inf")
                    s = torch.log_softmax(logits, 0)
                    options += [(score + float(s[v]), i, v) for v in range(len(s)) if math.isfinite(float(s[v]))]
            else:
                for i, (best, values, found) in enumerate(looked):
                    early = n + 1 <= self.warmup
                    penalised = [
                        v - self.weight * (-f[2] if early else min(f[0], 1e30))
                        for v, f in zip(values, found, strict=True)
                    ]
                    s = torch.log_softmax(torch.tensor(penalised, dtype=torch.float64), 0)
                    options += [(beams[i][1] + float(s[c]), i, v) for c, v in enumerate(best)]
            options = sorted(options, reverse=True)[: 2 * self.beams]
            live = []
            for rank, (score, parent, v) in enumerate(options):
                tokens = (*beams[parent][0], v)
                if v == self.eos or len(tokens) == self.length:
                    if rank < self.beams:
                        ended.append((score / len(tokens), tokens))
                elif len(live) < self.beams:
                    live.append((parent, (tokens, score, list(beams[parent][2]))))
            taken[n] = {(parent, beam[0][-1]) for parent, beam in live}
            beams = [beam for _, beam in live]
        return max(ended)[1]

    def way_back(self, place: int, beams: Any, visits: Counter[int], n: int) -> int | None:
        if place < self.warmup or any(peaks.count(place) <= self.threshold for _, _, peaks in beams):
            return None
        for kept in (place + 1, place):
            if kept < n and visits[kept] < self.candidates:
                visits[kept] += 1
                return kept
        return None


def common(values: list[int]) -> int:
    """The most frequent, the smallest of several."""
    return min(sorted(set(values)), key=lambda v: -values.count(v))
