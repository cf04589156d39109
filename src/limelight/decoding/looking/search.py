"""Which views are taken, and in which order, for one row: a list of proposals per round, until the budget is spent.

windows    the best windows of the localiser's field, in one round
quarters   best-first over a tree of crops: the quarters of the picture, then those of its best crop (halves of a sound; of a
           film two to four parts in time while it has more frames than are shown, else the quarters of its frames);
           a crop's score is how far its answer departs from that to empty media, plus its share of the relevance
auto       windows where the first view says something, quarters where it does not
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from limelight.decoding.looking.fields import Field, Times
from limelight.decoding.looking.joins import departure
from limelight.decoding.looking.regions import Proposal, Windows, at_least, propose, quarters
from limelight.errors import SettingError
from limelight.types import Box

SEARCHES = ("windows", "quarters", "auto")
ORDERS = ("evidence", "confidence")
OVERLAP = 0.15  # of neighbouring windows of a long sound, and by default of quarters
LEAST_SECONDS = 0.5
FULL = 1.05  # what is coarser than the model's view by no more than this is seen in full detail


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
        """The next round's views; [] at the end. None is enlarged: a part smaller than what the model sees grows to it, and so
        does one with fewer frames than the model is given of the whole film."""
        return [self._grown(p) for p in self._next()]

    def _grown(self, proposal: Proposal) -> Proposal:
        for f, side in zip(self.fields, self.sides, strict=True):
            if (f.kind, f.source) == (proposal.kind, proposal.source) and f.kind != "audio":
                box = at_least(proposal.box, side, f.size)
                return replace(proposal, box=box, interval=_long_enough(f, proposal.interval))
        return proposal

    def _next(self) -> list[Proposal]:
        self.rounds += 1
        if self.rounds == 1 and self.long is not None:
            return long_windows(*self.long)
        if self.given is not None:  # within the budget, which the windows of a long sound do not use up
            proposals, self.given = self.given[: self.views - 1], []
            return proposals
        if self.left <= 0:
            return []
        if self.kind == "quarters" or (self.kind == "auto" and not self._told()):
            return self._quarters()
        done = self.rounds > (1 if self.long is None else 2)
        return [] if done else [self._audible(p) for p in propose(self.fields, self.sides, self.windows, self.left)]

    def _audible(self, proposal: Proposal) -> Proposal:
        """A proposal cut around its middle to the window of a model for which the sound is too long."""
        if self.long is None or (proposal.kind, proposal.source) != ("audio", self.long[0]):
            return proposal
        (start, top, stop, bottom), window = proposal.box, self.long[2]
        if stop - start <= window:
            return proposal
        start = (start + stop - window) / 2
        return replace(proposal, box=(start, top, start + window, bottom))

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
        if 0 in order and self.long is None:  # all of it comes first; of a long sound, view 0 is a window like others
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
            box = self._first(f) if proposal is None else proposal.box
            when = f.span if proposal is None or proposal.interval is None else proposal.interval
            pairs: list[tuple[Box, Times | None]]
            if when is not None and f.finer(when) > max(FULL, self._coarseness(box, side)):
                count = min(4, max(2, self.left), max(2, math.ceil(f.finer(when))))  # more would be much the same
                pairs = [(box, part) for part in divided(when, count)]
            else:
                pairs = [(part, when) for part in self._divided(f, box, side)]
            out += [Proposal(f.kind, f.source, b, self._share_of(f, b, t), t) for b, t in pairs]
        return out

    def _first(self, f: Field) -> Box:
        """What the first view shows of a medium: all of it, or the first window of a long sound."""
        if self.long is not None and (f.kind, f.source) == ("audio", self.long[0]):
            return 0.0, 0.0, self.long[2], 1.0
        return 0.0, 0.0, *f.size

    @staticmethod
    def _coarseness(box: Box, side: float) -> float:
        """How many times as many pixels a box has as the model sees; 0 where that is unknown."""
        return (box[2] - box[0]) * (box[3] - box[1]) / side**2 if side else 0.0

    def _divided(self, f: Field, box: Box, side: float) -> list[Box]:
        left, top, right, bottom = box
        if f.kind == "audio":
            wide = (right - left) / 2 * (1 + self.overlap)
            return (
                [] if wide < LEAST_SECONDS else [(left, top, left + wide, bottom), (right - wide, top, right, bottom)]
            )
        fine = math.sqrt((right - left) * (bottom - top)) <= FULL * side  # the model has seen it in full detail
        return [] if fine else quarters(box, self.overlap)

    def _share(self, proposal: Proposal | None) -> float:
        if proposal is None:
            return (
                1.0 if self.long is None else max((self._share_of(f, self._first(f)) for f in self.fields), default=0.0)
            )
        found = [f for f in self.fields if (f.kind, f.source) == (proposal.kind, proposal.source)]
        return self._share_of(found[0], proposal.box, proposal.interval) if found else 0.0

    def _share_of(self, f: Field, box: Box, interval: Times | None = None) -> float:
        """A part's share of the field's mass, in [-1, 1]."""
        total = sum(float(abs(p.scores).sum()) for p in f.parts)
        times = None if interval is None else np.array([interval])
        return float(f.mass([box], times)[0]) / total if total else 0.0


def divided(interval: Times, count: int) -> list[Times]:
    """Equal parts of an interval, in order."""
    start, stop = interval
    edges = [start + (stop - start) * i / count for i in range(count + 1)]
    return list(pairwise(edges))


def _long_enough(f: Field, interval: Times | None) -> Times | None:
    """Grow an interval around its middle to as many frames as the model is given of the whole film, where it has more."""
    if interval is None or f.span is None or f.finer(f.span) <= FULL:
        return interval
    (begin, end), (start, stop) = f.span, interval
    least = min((len(f.edges) - 1) / f.rate, end - begin)
    if stop - start >= least:
        return interval
    start = min(max((start + stop - least) / 2, begin), end - least)
    return start, start + least


def long_windows(source: int, seconds: float, window: float) -> list[Proposal]:
    """The windows of a long sound after its first, of equal length, with some overlap."""
    step = window * (1 - OVERLAP)
    count = max(1, math.ceil((seconds - window) / step))
    starts = [(seconds - window) * (i + 1) / count for i in range(count)]
    return [Proposal("audio", source, (s, 0.0, min(s + window, seconds), 1.0)) for s in starts]


def given_proposals(
    boxes: Sequence[Sequence[float]], kind: str, source: int, size: tuple[float, float], span: Times | None = None
) -> list[Proposal]:
    """Proposals from boxes in fractions of the medium; of a film a box may have two further numbers, when it begins and ends.

    Args:
        span: of a film, when it begins and ends, in seconds.

    Raises:
        SettingError: times for what is not a film.
    """
    width, height = size
    out = []
    for box in boxes:
        if len(box) > 4 and span is None:
            raise SettingError(
                f"look-again: boxes of six numbers are for films, got {tuple(box)} for {kind}",
                hint="boxes=((left, top, right, bottom),) in fractions of the picture",
            )
        begin, end = span or (0.0, 0.0)
        when = (begin + box[4] * (end - begin), begin + box[5] * (end - begin)) if len(box) > 4 else None
        out.append(
            Proposal(kind, source, (box[0] * width, box[1] * height, box[2] * width, box[3] * height), 0.0, when)
        )
    return out
