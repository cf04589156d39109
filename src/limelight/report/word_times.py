"""Estimates of when a word occurs in the audio, from its relevance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from limelight.report import heat
from limelight.types import Relevance, Span

Times = npt.NDArray[np.float64]


def word_interval(relevance: Relevance, part: float = 0.5) -> tuple[float, float] | None:
    """Return the shortest interval ``(start, stop)`` in seconds with ``part`` of the audio's supporting relevance.

    Several audio clips are concatenated, without padding. The interval shows where the model's support for the word comes
    from; it is not an alignment of the word with the audio. None without audio, seconds or support.
    """
    spans = relevance.spans_of("audio")
    if not spans or any(s.seconds is None for s in spans):
        return None
    scores = heat.scores(relevance)
    values = np.concatenate([scores[s.start : s.stop] for s in spans])
    return stretch(values, np.concatenate(_after_one_another(spans)), part)


def _after_one_another(spans: tuple[Span, ...]) -> list[Times]:
    """Return the times of spans with concatenated audio clips (each span whose clip is unknown counts as one clip)."""
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
    """Return ``[n, 2]``: start and stop of each position of an audio clip, in seconds of the clip.

    Padding after the end of the audio has no duration. Where seconds are unknown, positions are spread over ``length`` (by
    default one second each).
    """
    each = span.seconds or ((length or len(span)) / len(span))
    start = span.interval.start if span.interval is not None else 0.0
    edges = start + np.arange(len(span) + 1, dtype=np.float64) * each
    if span.interval is not None:
        edges = np.minimum(edges, max(start, span.interval.duration))
    return np.stack([edges[:-1], edges[1:]], -1)


def padding(spans: tuple[Span, ...] | list[Span], scores: heat.Floats) -> float:
    """Return the part of the ``|R|`` on audio that is on padding; ``scores`` ``[T]``. 0 where unknown."""
    real = total = 0.0
    for span in spans:
        times, values = moments(span), np.abs(scores[span.start : span.stop])
        total += float(values.sum())
        real += float(values[times[:, 1] > times[:, 0]].sum())
    return 1 - real / total if total else 0.0


def stretch(scores: heat.Floats, times: Times, part: float = 0.5) -> tuple[float, float] | None:
    """Like :func:`word_interval` for scores ``[n]`` of positions with ``times`` ``[n, 2]``, in order; None without support."""
    weights = np.where(times[:, 1] > times[:, 0], np.maximum(scores, 0), 0).astype(np.float64)
    if not weights.sum() > 0:
        return None
    total = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
    starts, ends = times[:, 0], np.concatenate([times[:1, 0], times[:, 1]])
    # for every start, the first stop with enough support (rounding must not require more than the total)
    stops = np.searchsorted(total, np.minimum(total[:-1] + part, 1.0) - 1e-9)
    fits = np.flatnonzero(total[stops] - total[:-1] >= part - 1e-6)
    best = fits[int((ends[stops[fits]] - starts[fits]).argmin())]
    return float(starts[best]), float(ends[stops[best]])
