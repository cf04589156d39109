"""When a word was heard, as far as its relevance tells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from limelight.report import heat
from limelight.types import Relevance, Span

Times = npt.NDArray[np.float64]


def word_interval(relevance: Relevance, part: float = 0.5) -> tuple[float, float] | None:
    """The shortest stretch ``(start, stop)`` in seconds that holds ``part`` of the sound's supporting relevance.

    Several sounds count as one after the other, without what the processor padded them with. This is where the model's
    support for the word comes from, not an alignment of the word with the sound. None without sound, seconds or support.
    """
    spans = relevance.spans_of("audio")
    if not spans or any(s.seconds is None for s in spans):
        return None
    scores = heat.scores(relevance)
    values = np.concatenate([scores[s.start : s.stop] for s in spans])
    return stretch(values, np.concatenate(_after_one_another(spans)), part)


def _after_one_another(spans: tuple[Span, ...]) -> list[Times]:
    """Times of spans: each sound begins where the one before it ends (so does each span whose sound is not known)."""
    before = 0.0
    out: list[Times] = []
    for i, span in enumerate(spans):
        out.append(before + moments(span))
        following = spans[i + 1].interval if i + 1 < len(spans) else None
        if span.interval is None:
            before = float(out[-1][-1, 1])
        elif following is None or following.source != span.interval.source:
            before += span.interval.duration
    return out


def moments(span: Span, length: float | None = None) -> Times:
    """``[n, 2]``: from when to when each position of a sound lasts, in its sound's seconds.

    Padding behind the sound's end takes no time. Where the seconds are not known, the positions are spread over ``length``
    (without it, one second each).
    """
    each = span.seconds or ((length or len(span)) / len(span))
    start = span.interval.start if span.interval is not None else 0.0
    edges = start + np.arange(len(span) + 1, dtype=np.float64) * each
    if span.interval is not None:
        edges = np.minimum(edges, max(start, span.interval.duration))
    return np.stack([edges[:-1], edges[1:]], -1)


def padding(spans: tuple[Span, ...] | list[Span], scores: heat.Floats) -> float:
    """The part of the ``|R|`` on sounds that lies on padding; ``scores`` ``[T]``. 0 where that is not known."""
    real = whole = 0.0
    for span in spans:
        times, values = moments(span), np.abs(scores[span.start : span.stop])
        whole += float(values.sum())
        real += float(values[times[:, 1] > times[:, 0]].sum())
    return 1 - real / whole if whole else 0.0


def stretch(scores: heat.Floats, times: Times, part: float = 0.5) -> tuple[float, float] | None:
    """The same for the scores ``[n]`` of positions that last ``times`` ``[n, 2]``, in order; None when none supports."""
    weights = np.where(times[:, 1] > times[:, 0], np.maximum(scores, 0), 0).astype(np.float64)
    if not weights.sum() > 0:
        return None
    total = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
    starts, ends = times[:, 0], np.concatenate([times[:1, 0], times[:, 1]])
    # for every start the first stop that holds enough (rounding must not ask for more than there is)
    stops = np.searchsorted(total, np.minimum(total[:-1] + part, 1.0) - 1e-9)
    fits = np.flatnonzero(total[stops] - total[:-1] >= part - 1e-6)
    best = fits[int((ends[stops[fits]] - starts[fits]).argmin())]
    return float(starts[best]), float(ends[stops[best]])
