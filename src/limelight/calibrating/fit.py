"""Fitting the threshold and the probability curve to scores of labelled words."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limelight.benchmarks.extras import need
from limelight.calibrating.labels import INVENTED, OTHER, SUPPORTED
from limelight.calibration import Calibration
from limelight.errors import DataError, SettingError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
OBJECTIVES = ("youden", "recall", "precision", "false-flags")
CURVES = ("logistic", "isotonic")
LEAST = 10  # minimum number of words per label
SEGMENTS_LOST = 0.01  # maximum share of segments with words that their threshold may lose
KNOTS = 33
MARGINS = (0.0, 1.0, 2.0, None)  # how far a rival's z may be below the threshold; None: no rival is needed


@dataclass(frozen=True)
class Observed:
    """Scores of words ``[n]``: z, z of the best rival (-inf: none), and label (SUPPORTED, INVENTED, OTHER).

    Attributes:
        segments: of transcripts: the segments' mean support as ``z``, and whether anything is said as ``label``.
    """

    z: Floats
    rival: Floats
    label: NDArray[np.int64]
    segments: Observed | None = None

    @classmethod
    def of_segments(cls, z: Sequence[float], label: Sequence[int]) -> Observed:
        """Segments: they have no rivals."""
        return cls(np.array(z, float), np.full(len(z), np.inf), np.array(label, np.int64))

    def flagged(self, threshold: float, margin: float | None) -> Bools:
        """Return which words are flagged, like :func:`limelight.grounding.score.flagged`; margin None: no rival is needed."""
        low = self.z < threshold
        return low if margin is None else low & (self.rival >= threshold - margin)

    def count(self, label: int) -> int:
        return int((self.label == label).sum())


@dataclass(frozen=True)
class Objective:
    """Criterion for the threshold, in terms of ``caught``, the share of invented words that are flagged, and ``false``, the
    share of supported words that are flagged (averaged with the share of unlabelled words, if there are any).

    ``youden``: maximise caught - false. ``recall=r``: minimise false with caught >= r. ``precision=p``: maximise caught with
    at least p of the flagged words invented. ``false-flags=f``: maximise caught with false <= f.
    """

    name: str
    value: float = 0.0

    @classmethod
    def of(cls, text: str) -> Objective:
        """Parse ``youden``, ``recall=0.9`` etc.

        Raises:
            SettingError: an unknown objective, or a value outside [0, 1].
        """
        name, equals, value = text.replace("_", "-").partition("=")
        hint = "youden, recall=0.9, precision=0.9 or false-flags=0.05"
        if name not in OBJECTIVES or (name == "youden") == bool(equals):
            raise SettingError(f"unknown objective {text!r}", hint=hint)
        try:
            number = float(value) if equals else 0.0
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise SettingError(f"expected a value within [0, 1] in the objective {text!r}", hint=hint)
        return cls(name, number)

    def gain(self, caught: Floats, false: Floats, precision: Floats) -> Floats:
        """Return the quantity to maximise, -inf where the objective's condition is not met."""
        if self.name == "youden":
            return caught - false
        if self.name == "recall":
            return np.where(caught >= self.value, -false, -np.inf)
        met = precision >= self.value if self.name == "precision" else false <= self.value
        return np.where(met & (caught > 0), caught, -np.inf)


def fit(
    observed: Observed,
    *,
    model: str,
    objective: str = "youden",
    curve: str = "logistic",
    composite: str = "attnlrp",
    labels: str = "file",
    traits: Mapping[str, int] | None = None,
    held_out: Observed | None = None,
) -> Calibration:
    """Fit a calibration to labelled words; see :func:`limelight.calibrate`.

    Raises:
        DataError: fewer than ten words of either label, invented words that score no lower than supported ones, or an
            objective that no threshold meets. (A threshold for segments is fitted where there are ten of either label.)
        SettingError: an unknown objective or curve.
        MissingExtraError: scikit-learn is not installed.
    """
    from limelight import __version__

    wanted = Objective.of(objective)
    if curve not in CURVES:
        raise SettingError(f"unknown curve {curve!r}", hint=f"one of {', '.join(CURVES)}")
    _check(observed, "")
    if (auroc := _auroc(observed)) <= 0.5:
        raise DataError(
            f"supported words score no higher than invented ones (AUROC {auroc:.3f}): a flag would mislead",
            hint="check the labels; if they are right, this model's relevance does not identify invented words",
        )
    threshold, margin = choose(observed, wanted)
    scores, probabilities = _curve(observed, curve)
    found = Calibration(
        model=model, threshold=round(threshold, 4), segment_threshold=of_segments(observed), needs_rival=margin is not None, margin=margin or 0.0, scores=scores, probabilities=probabilities,
        curve=curve, composite=composite, objective=objective, labels=labels, traits=dict(traits or {}),
        counts={"supported": observed.count(SUPPORTED), "invented": observed.count(INVENTED), "other": observed.count(OTHER)},
        date=datetime.date.today().isoformat(), version=__version__,
    )  # fmt: skip
    measures = measured(observed, found)
    if held_out is not None:
        _check(held_out, "held-out ")
        measures |= {f"held_out_{k}": v for k, v in measured(held_out, found).items()}
    return replace(found, measures=measures)


def of_segments(observed: Observed) -> float | None:
    """The threshold of a segment's mean support that drops most segments without words and at most :data:`SEGMENTS_LOST` of
    those with words; None where there are too few of either, or where they score no higher with words than without."""
    found = observed.segments
    if found is None or min(found.count(SUPPORTED), found.count(INVENTED)) < LEAST or _auroc(found) <= 0.5:
        return None
    with suppress(DataError):
        return round(choose(found, Objective("false-flags", SEGMENTS_LOST))[0], 4)
    return None


def _check(observed: Observed, which: str) -> None:
    supported, invented = observed.count(SUPPORTED), observed.count(INVENTED)
    if min(supported, invented) < LEAST:
        raise DataError(
            f"expected at least {LEAST} supported and {LEAST} invented {which}words, got {supported} and {invented}",
            hint="add rows; if the model invents few words, use harder images or misleading prompts",
        )


def choose(observed: Observed, objective: Objective) -> tuple[float, float | None]:
    """Return the threshold (the middle one of equally good ones) and the rival's margin, None if the flag needs no rival.

    Raises:
        DataError: no threshold meets the objective.
    """
    edges = np.unique(observed.z[observed.label != OTHER])
    candidates = np.concatenate([[edges[0] - 1], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1]])
    invented, supported, other = (observed.label == which for which in (INVENTED, SUPPORTED, OTHER))
    best: tuple[float, float, float | None] | None = None
    for margin in MARGINS:
        flags = np.stack([observed.flagged(t, margin) for t in candidates])  # [thresholds, n]
        caught, *false = (flags[:, which].mean(1) for which in (invented, supported, other) if which.any())
        hit, wrong = (flags & invented).sum(1), (flags & ~invented).sum(1)
        gain = objective.gain(caught, np.mean(false, axis=0), hit / np.maximum(1, hit + wrong))
        top = float(gain.max())
        if np.isfinite(top) and (best is None or top > best[0]):
            equal = np.flatnonzero(gain == top)
            best = (top, float(candidates[equal[len(equal) // 2]]), margin)
    if best is None:
        raise DataError(
            f"no threshold meets {objective.name}={objective.value:g} on these words",
            hint="choose a less strict objective, or youden",
        )
    return best[1], best[2]


def _curve(observed: Observed, curve: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit P(supported | z) and return its knots: values of z, probabilities."""
    known = observed.label != OTHER
    z, y = observed.z[known], observed.label[known]
    if curve == "isotonic":
        regression: Any = need("sklearn.isotonic", "calibrate").IsotonicRegression(
            y_min=0, y_max=1, out_of_bounds="clip"
        )
        at = regression.fit(z, y).X_thresholds_
    else:
        regression = need("sklearn.linear_model", "calibrate").LogisticRegression().fit(z[:, None], y)
        at = np.linspace(z.min(), z.max(), KNOTS)
    at = np.unique(np.round(at, 5))
    values = regression.predict(at) if curve == "isotonic" else regression.predict_proba(at[:, None])[:, 1]
    return tuple(at.tolist()), tuple(np.round(values.clip(0, 1), 5).tolist())


def _auroc(observed: Observed) -> float:
    known = observed.label != OTHER
    return float(need("sklearn.metrics", "calibrate").roc_auc_score(observed.label[known], observed.z[known]))


def measured(observed: Observed, calibration: Calibration) -> dict[str, float]:
    """Return a calibration's quality on words, see :attr:`Calibration.measures`."""
    flags = observed.flagged(calibration.threshold, calibration.margin if calibration.needs_rival else None)
    known = observed.label != OTHER
    y = observed.label[known]
    p = np.array([calibration.probability(float(z)) for z in observed.z[known]])
    parts = {"caught": INVENTED, "false_flags": SUPPORTED, "other_flagged": OTHER}
    shares = {k: float(flags[observed.label == v].mean()) for k, v in parts.items() if observed.count(v)}
    found = {
        "auroc": _auroc(observed),
        **shares,
        "brier": float(((p - y) ** 2).mean()),
        "calibration_error": _error(p, y),
    }
    part = observed.segments
    if part is not None and calibration.segment_threshold is not None:
        low = part.z < calibration.segment_threshold
        found |= {
            f"segments_{k}": float(low[part.label == v].mean())
            for k, v in (("caught", INVENTED), ("lost", SUPPORTED))
            if part.count(v)
        }
    return {k: round(v, 4) for k, v in found.items()}


def _error(p: Floats, y: NDArray[np.int64], bins: int = 10) -> float:
    """Return the expected calibration error ``sum_b n_b / n |mean p - mean y|`` over equal bins of p (Guo et al., 2017)."""
    where = np.minimum((p * bins).astype(int), bins - 1)
    return float(sum(abs((p[where == b] - y[where == b]).sum()) for b in range(bins)) / len(p))
