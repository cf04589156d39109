"""Which views are taken, and in which order, for one row: a list of proposals per round, until the budget is spent.

windows    the best windows of the localiser's field, in one round
quarters   best-first over a tree of crops: the quarters of the picture, then those of its best crop (halves of a sound);
           a crop's score is how far its answer departs from that to empty media, plus its share of the relevance
auto       windows where the first view says something, quarters where it does not
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limelight.decoding.looking.fields import Field
from limelight.decoding.looking.joins import departure
from limelight.decoding.looking.regions import Proposal, Windows, at_least, propose, quarters
from limelight.types import Box

SEARCHES = ("windows", "quarters", "auto")
ORDERS = ("evidence", "confidence")
OVERLAP = 0.15  # of neighbouring windows of a long sound, and by default of quarters
LEAST_SECONDS = 0.5


@dataclass
class View:
    """A view that was taken: its proposal (None: the whole medium), and its logits ``[V]``."""

    proposal: Proposal | None
    logits: Tensor
    depth: int = 0


@dataclass
class Search:
    """The views of one row.

    Attributes:
        views: most views, the first one included. ``windows``, ``kind``: see above.
        sure: quarters end where a view's two likeliest tokens are so far apart in probability, and its answer is not that
            to empty media.
        telling: ``auto`` trusts the field where the first view departs from empty media by so much, in nats.
        fields, sides: the localiser's fields; for each, the side of what the model sees.
        long: (source, seconds, window) of a sound that is longer than the model's window.
        empty: logits to empty media ``[V]``, where they are needed.
        given: proposals in place of the localiser's.
        confidence: of logits ``[V]``, for the order "confidence"; None: the order is by evidence.
    """

    kind: str
    views: int
    windows: Windows
    sure: float
    telling: float
    overlap: float
    fields: list[Field]
    sides: list[float]
    long: tuple[int, float, float] | None
    taken: list[View]
    empty: Tensor | None = None
    given: list[Proposal] | None = None
    confidence: Callable[[Tensor], float] | None = None
    rounds: int = 0
    expanded: set[int] = field(default_factory=set)

    @property
    def left(self) -> int:
        return self.views - len(self.taken)

    def next(self) -> list[Proposal]:
        """The next round's views; [] at the end. None is enlarged: a part smaller than what the model sees grows to it."""
        return [self._grown(p) for p in self._next()]

    def _grown(self, proposal: Proposal) -> Proposal:
        for f, side in zip(self.fields, self.sides, strict=True):
            if (f.kind, f.source) == (proposal.kind, proposal.source) and f.kind != "audio":
                return replace(proposal, box=at_least(proposal.box, side, f.size))
        return proposal

    def _next(self) -> list[Proposal]:
        self.rounds += 1
        if self.rounds == 1 and self.long is not None:
            return long_windows(*self.long)
        if self.left <= 0:
            return []
        if self.given is not None:
            proposals, self.given = self.given[: self.left], []
            return proposals
        if self.kind == "quarters" or (self.kind == "auto" and not self._told()):
            return self._quarters()
        done = self.rounds > (1 if self.long is None else 2)
        return [] if done else propose(self.fields, self.sides, self.windows, self.left)

    def best(self) -> int:
        """The view with the most evidence."""
        return int(self._departures().argmax())

    def _told(self) -> bool:
        """Whether the first view says something that empty media do not."""
        if self.empty is None:
            return True
        return float(departure(self.taken[0].logits[None], self.empty)[0]) >= self.telling

    def _departures(self) -> Tensor:
        logits = torch.stack([v.logits for v in self.taken])
        return departure(logits, self.taken[0].logits if self.empty is None else self.empty)

    def _sure(self) -> bool:
        if len(self.taken) < 2 or self.empty is None:
            return False
        best = self.taken[int(self._departures().argmax())].logits
        first, second = best.softmax(-1).topk(2).values
        return bool(first - second >= self.sure) and int(best.argmax()) != int(self.empty.argmax())

    def _quarters(self) -> list[Proposal]:
        if self._sure():
            return []
        departures = self._departures()

        def score(i: int) -> float:
            if self.confidence is not None:
                return self.confidence(self.taken[i].logits)
            return float(departures[i] / (1 + departures[i])) + self._share(self.taken[i].proposal)

        order = sorted((i for i in range(len(self.taken)) if i not in self.expanded), key=score, reverse=True)
        if 0 in order:  # the whole comes first
            order = [0]
        for i in order:
            self.expanded.add(i)
            parts = self._parts(self.taken[i].proposal)
            if parts:
                parts.sort(key=lambda p: -p.score)
                return parts[: self.left]
        return []

    def _parts(self, proposal: Proposal | None) -> list[Proposal]:
        out = []
        for f, side in zip(self.fields, self.sides, strict=True):
            if proposal is not None and (proposal.kind, proposal.source) != (f.kind, f.source):
                continue
            box = (0.0, 0.0, *f.size) if proposal is None else proposal.box
            for part in self._divided(f, box, side):
                out.append(Proposal(f.kind, f.source, part, self._share_of(f, part), _frames(f)))
        return out

    def _divided(self, f: Field, box: Box, side: float) -> list[Box]:
        left, top, right, bottom = box
        if f.kind == "audio":
            wide = (right - left) / 2 * (1 + self.overlap)
            return (
                [] if wide < LEAST_SECONDS else [(left, top, left + wide, bottom), (right - wide, top, right, bottom)]
            )
        fine = math.sqrt((right - left) * (bottom - top)) <= 1.05 * side  # the model has seen it in full detail
        return [] if fine else quarters(box, self.overlap)

    def _share(self, proposal: Proposal | None) -> float:
        if proposal is None:
            return 1.0
        found = [f for f in self.fields if (f.kind, f.source) == (proposal.kind, proposal.source)]
        return self._share_of(found[0], proposal.box) if found else 0.0

    def _share_of(self, f: Field, box: Box) -> float:
        """The box's part of the field's mass, in [-1, 1]."""
        total = sum(float(abs(p.scores).sum()) for p in f.parts)
        return float(f.mass([box])[0]) / total if total else 0.0


def _frames(f: Field) -> tuple[int, int] | None:
    return (0, len(f.frames) - 1) if f.frames else None


def long_windows(source: int, seconds: float, window: float) -> list[Proposal]:
    """The windows of a long sound after its first, of equal length, with some overlap."""
    step = window * (1 - OVERLAP)
    count = max(1, math.ceil((seconds - window) / step))
    starts = [(seconds - window) * (i + 1) / count for i in range(count)]
    return [Proposal("audio", source, (s, 0.0, min(s + window, seconds), 1.0)) for s in starts]


def given_proposals(boxes: Sequence[Box], kind: str, source: int, size: tuple[float, float]) -> list[Proposal]:
    """Proposals from boxes in fractions of the medium."""
    width, height = size
    return [Proposal(kind, source, (b[0] * width, b[1] * height, b[2] * width, b[3] * height)) for b in boxes]
