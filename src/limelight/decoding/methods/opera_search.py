"""OPERA's beam search: beams on one cache, their attention to generated tokens, and the roll-back."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from limelight.decoding.beams import choose, fork
from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.instruments import DecoderHook, hooked_attention, key_places
from limelight.decoding.processors import for_row
from limelight.decoding.searched import library_criteria
from limelight.decoding.strategy import GenerationContext
from limelight.models.adapter import Adapter
from limelight.models.runtime.cached_decoder import Stream

SHRINK = math.log(1e-7)
LARGEST = math.log(1e30)


@dataclass(frozen=True)
class SearchSettings:
    """OPERA's settings; see :class:`limelight.decoding.methods.opera.Opera`."""

    beams: int
    candidates: int
    sigma: float
    threshold: int
    weight: float
    warmup: int


@dataclass(frozen=True)
class Beam:
    """A hypothesis: score, log ``prod_{r >= j} sigma a[r, j]`` [n], the largest j per step, the greedy tokens."""

    tokens: tuple[int, ...]
    score: float
    columns: Tensor
    peaks: tuple[int, ...] = ()
    plain: tuple[int, ...] = ()


@dataclass(frozen=True)
class Option:
    """A candidate token for a beam; ``ahead`` is its row in the look-ahead stream, which has already processed it."""

    score: float
    parent: int
    token: int
    ahead: int = -1


@dataclass
class State:
    """The search state when every beam had n tokens, saved for roll-backs."""

    beams: list[Beam]
    ended: list[tuple[float, Beam]]
    taken: set[tuple[int, int]] = field(default_factory=set)
    barred: set[tuple[int, int]] = field(default_factory=set)


class Search:
    """OPERA's beam search on one row of a prefilled batch."""

    def __init__(
        self, settings: SearchSettings, context: GenerationContext, base: Stream, logits: Tensor, row: int
    ) -> None:
        self.settings, self.context, self.base, self.row = settings, context, base, row
        self.watch = LastRow(context.adapter)
        self.places = media_mask(context)[row : row + 1]
        self.stream = fork(base, [row])
        self.processed = for_row(context.sampler.processors, row, context.ids.shape[0])
        self.stopping = library_criteria(context.stopping)
        self.logits = logits[row : row + 1]
        self.ids = self.stream.ids
        self.ahead = self.first = self.logits
        empty = torch.zeros(0, device=context.ids.device)
        self.beams = [Beam((), 0.0, empty)]
        self.ended: list[tuple[float, Beam]] = []
        self.states: list[State] = []
        self.returns: Counter[int] = Counter()

    def best(self) -> Beam:
        while self.beams and not self._done():
            self._step()
        return max(self.ended, key=lambda pair: pair[0])[1]

    def _step(self) -> None:
        n = len(self.beams[0].tokens)
        del self.states[n:]
        self.states.append(State(self.beams, list(self.ended)))
        chances, tokens, rows = self._look_ahead()
        sums, own = self._columns(rows, n)
        peak_values, peaks = sums.max(dim=-1)  # [beams, candidates]
        stayed = [_most_common(p) for p in peaks.tolist()]
        self.beams = [replace(b, peaks=(*b.peaks, p)) for b, p in zip(self.beams, stayed, strict=True)]
        place = self._summary(stayed, n)
        if place is not None:
            self._roll_back(place)
            return
        if n + 1 <= self.settings.warmup:
            penalty = -own
        else:
            penalty = (peak_values + SHRINK).clamp_max(LARGEST).exp()
        scores = torch.log_softmax(chances - self.settings.weight * penalty, dim=-1)
        width = tokens.shape[1]
        options = [
            Option(b.score + float(scores[i, c]), i, int(tokens[i, c]), i * width + c)
            for i, b in enumerate(self.beams)
            for c in range(width)
            if math.isfinite(float(scores[i, c]))
        ]
        self._extend(options, sums)

    def _look_ahead(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return candidate logits and ids ``[k, C]`` and their attention rows ``[k, C, K]``; the stream then has k * C rows."""
        self.ids = self.stream.ids
        processed = self.processed(self.ids, self.logits)
        chances, tokens = processed.topk(min(self.settings.candidates, processed.shape[-1]), dim=-1)
        k, width = tokens.shape
        choose(self.stream, [i for i in range(k) for _ in range(width)])
        self.ahead, rows = self._feed(tokens.flatten())
        return chances, tokens, rows.reshape(k, width, -1)

    def _feed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with hooked_attention(self.context.adapter, self.watch, [self.watch.layer]):
            logits = self.stream.next(tokens)
        return logits, self.watch.row

    def _columns(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return log products ``[k, C, n + 1]`` including the candidate's row, and its attention to the media ``[k, C]``."""
        k, width, keys = rows.shape
        answer = rows.new_zeros(k, width, n + 1)
        count = min(keys, n + 1)
        answer[..., n + 1 - count :] = rows[..., keys - count :]
        before = torch.stack([b.columns for b in self.beams])[:, None].expand(k, width, n)
        before = torch.cat([before, before.new_zeros(k, width, 1)], dim=-1)
        length = self.places.shape[1] + n + 1
        own = (rows * key_places(self.places, keys, length)).sum(-1)
        return before + (self.settings.sigma * answer).log(), own

    def _summary(self, peaks: list[int], n: int) -> int | None:
        """Return the number of tokens to roll back to, if all beams have over-trusted one token for too long, else None."""
        place = _most_common(peaks)
        over_trusted = all(Counter(b.peaks)[place] > self.settings.threshold for b in self.beams)
        if not over_trusted or place < self.settings.warmup:
            return None
        for kept in (place + 1, place):
            if kept < n and self.returns[kept] < self.settings.candidates:
                self.returns[kept] += 1
                return kept
        return None

    def _roll_back(self, n: int) -> None:
        """Roll back to ``n`` tokens and continue with tokens that were not chosen there before."""
        state = self.states[n]
        state.barred |= state.taken
        self.beams, self.ended = state.beams, list(state.ended)
        del self.states[n + 1 :]
        self.stream = fork(self.base, [self.row] * len(self.beams))
        self.logits = self.first.expand(len(self.beams), -1)
        for step in range(n):
            self.logits = self.stream.next(self.ids.new_tensor([b.tokens[step] for b in self.beams]))
        self.ids = self.stream.ids
        processed = self.processed(self.ids, self.logits).clone()
        for parent, token in state.barred:
            processed[parent, token] = float("-inf")
        scores = torch.log_softmax(processed, dim=-1)
        count = min(2 * self.settings.beams, scores.shape[-1])
        values, tokens = scores.topk(count, dim=-1)
        options = [
            Option(b.score + float(values[i, c]), i, int(tokens[i, c]))
            for i, b in enumerate(self.beams)
            for c in range(count)
            if math.isfinite(float(values[i, c]))
        ]
        self._extend(options, None)

    def _extend(self, options: list[Option], sums: Tensor | None) -> None:
        """Make the best options the new beams; options that end the answer are added to the finished hypotheses."""
        options = sorted(options, key=lambda o: -o.score)[: 2 * self.settings.beams]
        greedy = self.logits.argmax(-1).tolist()
        ids = torch.stack([torch.cat([self.ids[o.parent], self.ids.new_tensor([o.token])]) for o in options])
        stops = self.stopping(ids, None).tolist()
        live: list[Option] = []
        for rank, (option, stop) in enumerate(zip(options, stops, strict=True)):
            if not stop and len(live) < self.settings.beams:
                live.append(option)
            elif stop and rank < self.settings.beams:
                self._end(self._child(option, greedy))
        self.states[-1].taken = {(o.parent, o.token) for o in live}
        children = [self._child(o, greedy) for o in live]
        if live and sums is not None:
            kept = [o.ahead for o in live]
            choose(self.stream, kept)
            self.logits = self.ahead[kept]
            columns = list(sums.flatten(0, 1)[kept])
        elif live:
            n = len(self.beams[0].tokens)
            choose(self.stream, [o.parent for o in live])
            self.beams = [self.beams[o.parent] for o in live]
            self.logits, rows = self._feed(self.ids.new_tensor([o.token for o in live]))
            columns = list(self._columns(rows[:, None], n)[0][:, 0])
        self.beams = [replace(c, columns=column) for c, column in zip(children, columns, strict=True)] if live else []

    def _child(self, option: Option, greedy: list[int]) -> Beam:
        parent = self.beams[option.parent]
        return Beam(
            (*parent.tokens, option.token), option.score, parent.columns, parent.peaks,
            (*parent.plain, greedy[option.parent]),
        )  # fmt: skip

    def _end(self, beam: Beam) -> None:
        self.ended.append((beam.score / self._length(len(beam.tokens)), beam))
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[: self.settings.beams]

    def _done(self) -> bool:
        """Return whether the search is done, as in transformers' beam search: no live beam can still beat the worst of
        ``beams`` finished ones (``early_stopping``: True needs ``beams`` finished ones only, "never" assumes the maximum
        length for live beams)."""
        if len(self.ended) < self.settings.beams:
            return False
        early = getattr(self.context.config, "early_stopping", False)
        if early is True:
            return True
        length = len(self.beams[0].tokens)
        if early == "never" and self._length(2) > 1:
            length = int(self.context.config.max_length) - self.context.ids.shape[1]
        return self.ended[-1][0] >= max(b.score for b in self.beams) / self._length(length)

    def _length(self, n: int) -> float:
        penalty = getattr(self.context.config, "length_penalty", None)
        return float(n ** (1.0 if penalty is None else penalty))


class LastRow(DecoderHook):
    """Records the last query's attention in the last layer ``[B, K]``: maximum over heads, normalised to sum to 1."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter)
        self.layer = max(self.modules)
        self.row = torch.zeros(0)

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        if layer == self.layer and self.inside:
            largest = weights[..., -1, :].amax(dim=1).float()
            self.row = largest / largest.sum(-1, keepdim=True)
        return out


def _most_common(values: list[int]) -> int:
    """Return the most frequent value; the smallest in case of ties."""
    counts = Counter(values)
    return min(counts, key=lambda v: (-counts[v], v))
