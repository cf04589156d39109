"""Calibration of the grounding score for one model: the flag's threshold, and the mapping of scores to probabilities.

:func:`limelight.calibrate` fits calibrations; ``limelight.load`` finds them in the user's cache under the model's name, next to
the weights (``calibration.json``), or in the package (for the Whispers). Without one the flag's threshold is a default that was chosen on the vision
miniature, and is reported as such.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from limelight.errors import DataError, SettingError
from limelight.user_cache_dir import user_cache_dir

FORMAT = "limelight calibration 1"
FILE = "calibration.json"
THRESHOLD = 4.0  # default threshold of the flag, see limelight.grounding.score
AUTO, NONE = "auto", "none"  # instead of a file: search for one, use none
_HINT = "create it again with `limelight calibrate`, or load with calibration=None"


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration, the data it was fitted on, and its quality.

    Attributes:
        model: the name it was fitted under; ``traits``: layers, width and vocabulary, to detect other models.
        threshold: tokens with z below it are flagged.
        needs_rival: flag only where the media support another plausible token: its z reaches the threshold minus
            ``margin`` (:func:`limelight.grounding.score.flagged`).
        segment_threshold: transcripts' segments with a mean support below it (in units of the logit,
            :attr:`limelight.decoding.transcribe.Segment.support`) are not supported by the audio; None: not fitted.
        scores, probabilities: knots of the probability that a token is supported, increasing with z; linear between them,
            constant beyond. Logistic curves are also stored as knots, so that reading them needs no library.
        curve: ``logistic`` or ``isotonic``: the curve the knots were sampled from.
        composite: composite of the meter that measured the scores; the calibration is not used with others.
        objective: the criterion for the threshold.
        labels: origin of the labels: ``file``, or ``own answers``.
        counts: numbers of ``supported``, ``invented`` and ``other`` (unlabelled) words in the fit.
        measures: on these words: ``auroc``, ``caught`` (share of invented words flagged), ``false_flags`` (share of
            supported ones), ``other_flagged``, ``brier`` and ``calibration_error``; with the prefix ``held_out_``: on
            held-out words.
        date: ISO, of the fit. ``version``: of the library.
    """

    model: str
    threshold: float
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    needs_rival: bool = True
    margin: float = 0.0
    segment_threshold: float | None = None
    curve: str = "logistic"
    composite: str = "attnlrp"
    objective: str = "youden"
    labels: str = "file"
    traits: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    date: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        knots = list(zip(self.scores, self.probabilities, strict=False))
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
        sized = len(self.scores) == len(self.probabilities) >= 1
        inside = all(math.isfinite(z) and 0 <= p <= 1 for z, p in knots)
        limits = all(math.isfinite(x) for x in (self.threshold, self.segment_threshold or 0.0))
        if not (sized and rising and inside and limits and self.margin >= 0):
            raise SettingError(
                f"a calibration needs a finite threshold and as many rising scores as probabilities in [0, 1], got threshold "
                f"{self.threshold}, {len(self.scores)} scores and {len(self.probabilities)} probabilities",
                hint=_HINT,
            )

    def probability(self, z: float) -> float:
        """Return the probability that a token with this score is supported."""
        at = bisect_right(self.scores, z)
        if at == 0 or at == len(self.scores):
            return self.probabilities[max(0, at - 1)]
        left, right = self.scores[at - 1], self.scores[at]
        low, high = self.probabilities[at - 1], self.probabilities[at]
        return low + (high - low) * (z - left) / (right - left)

    def save(self, path: str | Path) -> Path:
        """Write the calibration as JSON, creating folders as needed.

        Raises:
            DataError: the file cannot be written; one that was there is kept.
        """
        path = Path(path)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n")
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise DataError(
                f"the calibration cannot be written to {path}: {error.strerror or error}",
                hint="free some space or make the folder writable, or pass another file (--out)",
            ) from error
        return path

    def about(self) -> dict[str, Any]:
        """Return the information shown with every flag."""
        shown = ("auroc", "caught", "false_flags", "other_flagged")
        best = {k: self.measures.get(f"held_out_{k}", self.measures.get(k)) for k in shown}
        return {
            "threshold": self.threshold, "needs_rival": self.needs_rival, "margin": self.margin, "default": False, "model": self.model,
            "labels": self.labels, "date": self.date, **{k: v for k, v in best.items() if v is not None},
        }  # fmt: skip


def flag_rule(calibration: Calibration | None) -> dict[str, Any]:
    """Return the flag's rule as plain values: ``threshold``, ``needs_rival``, ``margin``, ``default`` (not calibrated)."""
    if calibration is None:
        return {"threshold": THRESHOLD, "needs_rival": True, "margin": 0.0, "default": True}
    return calibration.about()


def spoken(rule: Mapping[str, Any]) -> str:
    """Describe the flag's rule for legends; "" for an empty one."""
    if not rule:
        return ""
    low = f"flagged: grounding below {rule['threshold']:.2f}"
    low += (
        f", while another plausible word has {rule['threshold'] - rule['margin']:.2f} or more"
        if rule["needs_rival"]
        else ""
    )
    if rule["default"]:
        return f"{low} (a default, not calibrated for this model: limelight calibrate)"
    caught, lost = rule.get("caught"), rule.get("false_flags")
    known = (
        "" if caught is None or lost is None else f": caught {caught:.0%} of invented words and {lost:.0%} of true ones"
    )
    return f"{low} (calibrated on {rule['labels']}, {rule['date']}{known})"


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration from its file.

    Raises:
        SettingError: no such file, or not a calibration.
    """
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise SettingError(f"there is no calibration {str(path)!r}", hint=_HINT) from error
    except (OSError, ValueError) as error:
        raise SettingError(f"cannot read the calibration {str(path)!r}: {error}", hint=_HINT) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise SettingError(f"{str(path)!r} is not a calibration: expected format {FORMAT!r}, got {got!r}", hint=_HINT)
    values = {k: v for k, v in found.items() if k != "format"}
    try:
        values |= {k: tuple(float(x) for x in values[k]) for k in ("scores", "probabilities")}
        return Calibration(**{**values, "threshold": float(values["threshold"])})
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"the calibration {str(path)!r} is damaged: {error}", hint=_HINT) from error


def cache_file(model: str) -> Path:
    """Return the path of the user's calibration of a model, in the cache folder."""
    folder = Path(model).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else model
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(name).name)[:60]
    return user_cache_dir() / "calibrations" / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"


def find_calibration(model: str, folder: Path | None = None) -> Path | None:
    """Return the path of the user's calibration of a model, else of the one next to its weights; None if there is none."""
    shipped = [] if folder is None else [folder / FILE]
    return next((p for p in (cache_file(model), *shipped) if p.is_file()), None)


def check_fits(calibration: Calibration, traits: Mapping[str, int]) -> None:
    """Raise SettingError if it was fitted on a model of a different shape."""
    other = {k: v for k, v in calibration.traits.items() if k in traits and traits[k] != v}
    if other:
        differences = ", ".join(f"{k} {v} (here {traits[k]})" for k, v in other.items())
        raise SettingError(
            f"the calibration of {calibration.model!r} is for a different model: {differences}", hint=_HINT
        )
