"""Beam search written out: every hypothesis as a tuple, its logits asked for anew, all continuations sorted."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Tokens = tuple[int, ...]


def search(
    logits_of: Callable[[Tokens], Tensor], beams: int, length: int, *, ends: tuple[int, ...] = (), penalty: float = 1.0,
    early: bool = False,
) -> list[tuple[float, Tokens]]:  # fmt: skip
    """Finished hypotheses with their scores (mean log-probability, for ``penalty`` 1), best first."""
    live: list[tuple[float, Tokens]] = [(0.0, ())]
    ended: list[tuple[float, Tokens]] = []
    while live:
        options = []
        for score, tokens in live:
            s = torch.log_softmax(logits_of(tokens).double(), -1).tolist()
            options += [(score + v, (*tokens, i)) for i, v in enumerate(s) if math.isfinite(v)]
        options = sorted(options, reverse=True)[: max(2, 1 + len(ends)) * beams]
        live = []
        for rank, (score, tokens) in enumerate(options):
            if tokens[-1] in ends or len(tokens) == length:
                if rank < beams:
                    ended.append((score / len(tokens) ** penalty, tokens))
            elif len(live) < beams:
                live.append((score, tokens))
        ended = sorted(ended, reverse=True)[:beams]
        if len(ended) == beams and live:
            best = max(live)[0] / len(live[0][1]) ** penalty
            if early or ended[-1][0] >= best:
                break
    return ended
