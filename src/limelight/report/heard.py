"""When a word was heard, as far as its relevance tells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from limelight.report import heat
from limelight.types import Relevance


def heard(relevance: Relevance, part: float = 0.5) -> tuple[float, float] | None:
    """The shortest stretch ``(start, stop)`` in seconds that holds ``part`` of the sound's supporting relevance.

    Several sounds (or windows of one) count as one after the other. This is where the model's support for the word comes
    from, not an alignment of the word with the sound. None without sound, seconds or support.
    """
    spans = relevance.spans_of("audio")
    if not spans or any(s.seconds is None for s in spans):
        return None
    scores = heat.scores(relevance)
    values = np.concatenate([scores[s.start : s.stop] for s in spans])
    return stretch(values, np.concatenate([np.full(len(s), s.seconds) for s in spans]), part)


def stretch(scores: heat.Floats, each: npt.ArrayLike, part: float = 0.5) -> tuple[float, float] | None:
    """The same for the scores ``[n]`` of positions that last ``each`` seconds; None when none of them supports."""
    weights = np.maximum(scores, 0).astype(np.float64)
    if not weights.sum() > 0:
        return None
    total = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
    times = np.concatenate([[0.0], np.cumsum(np.broadcast_to(each, weights.shape), dtype=np.float64)])
    # for every start the first stop that holds enough (rounding must not ask for more than there is)
    stops = np.searchsorted(total, np.minimum(total[:-1] + part, 1.0) - 1e-9)
    fits = total[stops] - total[:-1] >= part - 1e-6
    starts = np.flatnonzero(fits)
    best = starts[int((times[stops[starts]] - times[starts]).argmin())]
    return float(times[best]), float(times[stops[best]])
