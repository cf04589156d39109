"""The methods on the rows of a batch, independent of the engine: FLB, and contrast between two requests of a pair.

A pair decodes in lockstep: both requests get the same combined logits, so both choose the same token, and the contrast
request follows the answer. That needs both at the same position in the same step. A request whose partner is not there
(not sent, still waiting, already ended, or started in another step) decodes plainly from then on, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limelight.decoding.formulas import amplified, boosted, guided
from limelight.engines.requests import Asked


@dataclass
class Row:
    """One request in the batch. ``first``: FLB's logits of the first token; ``together``: whether it decodes with its
    partner (None: not decided before its first token)."""

    asked: Asked
    first: Tensor | None = None
    together: bool | None = None


@dataclass(frozen=True)
class At:
    """Where a request stands in this step: its row of the logits, the number of tokens that it has generated, and whether its
    whole prompt has been read."""

    row: int
    count: int
    ready: bool = True


@dataclass
class Contrast:
    """State of all requests by key (slot or index); ``counts``: how many requests decoded how."""

    rows: dict[int, Row] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"flb": 0, "paired": 0, "alone": 0, "parted": 0})

    def add(self, key: int, asked: Asked | None) -> None:
        """Add a request, or forget the slot's former one."""
        self.rows.pop(key, None)
        if asked is not None:
            self.rows[key] = Row(asked)

    def apply(self, logits: Tensor, places: dict[int, At]) -> Tensor:
        """Change the rows of ``logits`` [N, V] in place; ``places``: where each request of the batch stands."""
        pairs: dict[str, dict[bool, int]] = {}
        for key, at in places.items():
            row = self.rows.get(key)
            if row is None:
                continue
            if row.asked.method == "flb":
                self._flb(logits, row, at)
            else:
                pairs.setdefault(row.asked.pair, {})[row.asked.contrast] = key
        for members in pairs.values():
            self._pair(logits, members, places)
        return logits

    def _flb(self, logits: Tensor, row: Row, at: At) -> None:
        if not at.ready:
            return
        own = logits[at.row][None]
        if row.first is None:
            row.first = own.clone()
            self.counts["flb"] += 1
        s = row.asked.settings
        logits[at.row] = boosted(own, row.first, at.count, s["gamma"], s["decay"], s["beta"])[0]

    def _pair(self, logits: Tensor, members: dict[bool, int], places: dict[int, At]) -> None:
        here = [places[k] for k in members.values()]
        ready = len(here) == 2 and all(at.ready for at in here) and here[0].count == here[1].count
        rows = [self.rows[k] for k in members.values()]
        if not ready:
            for row, at in zip(rows, here, strict=True):
                if at.ready:  # it chooses a token now, and its partner does not
                    self._alone(row)
            return
        if any(row.together is False for row in rows):
            for row in rows:
                self._alone(row)
            return
        if any(row.together is None for row in rows):
            if here[0].count:  # such as after a preemption that forgot them: nobody knows what came before
                for row in rows:
                    self._alone(row)
                return
            self.counts["paired"] += 1
            for row in rows:
                row.together = True
        answer, other = (places[members[contrast]] for contrast in (False, True))
        out = combined(
            self.rows[members[False]].asked, logits[answer.row][None], logits[other.row][None], answer.count
        )[0]
        logits[answer.row] = out
        logits[other.row] = out

    def _alone(self, row: Row) -> None:
        if row.together is False:
            return
        self.counts["parted" if row.together else "alone"] += 1
        row.together = False


def combined(asked: Asked, own: Tensor, other: Tensor, count: int) -> Tensor:
    """Return the logits ``[1, V]`` of a method from the answer's and the contrast request's; ``count``: tokens so far."""
    s = asked.settings
    if asked.method == "m3id":
        out = guided(own, other, math.expm1(s["decay"] * (count + 1)), s["beta"])
        unsure = torch.softmax(own, dim=-1).amax(dim=-1, keepdim=True) < s["gate"]
        return out if s["gate"] >= 1 else torch.where(unsure, out, own)
    return amplified(own, other, s["alpha"], s["beta"])


def chunked(prompts: Sequence[int], running: int, budget: int) -> bool:
    """Whether a step that starts these prompts beside running requests may have had to split one of them."""
    return sum(prompts) + running > budget
