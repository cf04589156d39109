"""Thresholds by brute force, probabilities that rise and fit, and data that no flag can be made of."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from limelight.calibrating.fit import MARGINS, Objective, Observed, choose, fit, measured
from limelight.calibrating.labels import INVENTED, OTHER, SUPPORTED
from limelight.errors import DataError, MissingExtraError, SettingError
from limelight.grounding.score import flagged


def words(seed: int = 0, n: int = 120, apart: float = 2.0, other: int = 60, rivals: float = 0.7) -> Observed:
    """Supported words around 5, invented ones lower, other words as high; a part of them has a rival."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.full(n, SUPPORTED), np.full(n // 2, INVENTED), np.full(other, OTHER)])
    z = np.where(label == INVENTED, 5.0 - apart, 5.0) + rng.normal(size=len(label))
    rival = np.where(rng.random(len(label)) < rivals, 5 + rng.normal(size=len(label)), -np.inf)
    return Observed(z, rival, label)


@pytest.mark.parametrize("text", ["youden", "recall=0.8", "precision=0.7", "false-flags=0.1"])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_threshold_is_better(text: str, seed: int) -> None:
    observed, objective = words(seed), Objective.of(text)

    def gain(threshold: float, margin: float | None) -> float:
        hits = {SUPPORTED: 0, INVENTED: 0, OTHER: 0}
        for z, rival, label in zip(observed.z, observed.rival, observed.label, strict=True):
            hits[int(label)] += bool(z < threshold and (margin is None or rival >= threshold - margin))
        caught = hits[INVENTED] / observed.count(INVENTED)
        false = (hits[SUPPORTED] / observed.count(SUPPORTED) + hits[OTHER] / observed.count(OTHER)) / 2
        if text == "youden":
            return caught - false
        if text.startswith("recall"):
            return -false if caught >= 0.8 else -9
        if text.startswith("precision"):
            return caught if sum(hits.values()) and hits[INVENTED] / sum(hits.values()) >= 0.7 else -9
        return caught if false <= 0.1 else -9

    threshold, margin = choose(observed, objective)
    grid = np.unique(observed.z[observed.label != OTHER])
    middle = [grid[0] - 1, *((grid[1:] + grid[:-1]) / 2), grid[-1] + 1]
    assert gain(threshold, margin) == pytest.approx(max(gain(t, m) for t in middle for m in MARGINS))


def test_words_of_grammar_ask_for_a_rival() -> None:
    """A flag that would fall on every low word is worse where unlabelled words are low and have no rival."""
    label = np.array([SUPPORTED] * 20 + [INVENTED] * 20 + [OTHER] * 60)
    z = np.array([6.0] * 20 + [2.0] * 20 + [1.0] * 60) + np.linspace(0, 0.5, 100)
    rival = np.array([3.0] * 20 + [7.0] * 20 + [-np.inf] * 60)
    assert choose(Observed(z, rival, label), Objective.of("youden"))[1] is not None
    heard = Observed(z[:40], np.full(40, -np.inf), label[:40])
    assert choose(heard, Objective.of("youden"))[1] is None


def test_the_flag_is_that_of_the_score() -> None:
    observed = words()
    z, rival = torch.tensor(observed.z), torch.tensor(observed.rival)
    for margin in MARGINS:
        want = flagged(z, rival, 4.2, needs_rival=margin is not None, margin=margin or 0.0)
        assert observed.flagged(4.2, margin).tolist() == want.tolist()


@pytest.mark.parametrize("curve", ["logistic", "isotonic"])
def test_probabilities_rise_and_are_calibrated(curve: str) -> None:
    observed, later = words(1, 2000), words(2, 2000)
    found = fit(observed, model="m", curve=curve, held_out=later, traits={"layers": 2})
    assert list(found.probabilities) == sorted(found.probabilities) and len(found.scores) >= 3
    assert found.probability(0.0) < 0.2 < 0.8 < found.probability(7.0)
    assert found.measures["held_out_calibration_error"] < 0.05
    assert found.counts == {"supported": 2000, "invented": 1000, "other": 60}
    assert (found.model, found.curve, found.traits, found.objective) == ("m", curve, {"layers": 2}, "youden")
    assert measured(later, found) == {k[9:]: v for k, v in found.measures.items() if k.startswith("held_out_")}
    below = observed.z[observed.label == SUPPORTED][:, None] > observed.z[observed.label == INVENTED][None]
    assert found.measures["auroc"] == pytest.approx(below.mean(), abs=1e-4)
    y, p = later.label[later.label != OTHER], [found.probability(z) for z in later.z[later.label != OTHER]]
    assert found.measures["held_out_brier"] == pytest.approx(np.mean((np.array(p) - y) ** 2), abs=1e-4)


def test_words_that_no_flag_can_be_made_of() -> None:
    with pytest.raises(DataError, match="expected at least 10 supported and 10 invented words, got 12 and 6"):
        fit(words(n=12), model="m")
    with pytest.raises(DataError, match="held-out words"):
        fit(words(), model="m", held_out=words(n=8))
    with pytest.raises(DataError, match="score no higher than invented"):
        fit(words(apart=-1.0), model="m")
    with pytest.raises(DataError, match="no threshold meets precision=1 "):
        flat = Observed(
            np.array([1.0, 2.0] * 20), np.full(40, -np.inf), np.array([INVENTED, SUPPORTED, SUPPORTED, INVENTED] * 10)
        )
        choose(flat, Objective.of("precision=1"))


@pytest.mark.parametrize("text", ["auroc", "youden=1", "recall", "recall=1.5", "precision=x", ""])
def test_objectives_that_are_none(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        Objective.of(text)
    assert "false-flags=0.05" in caught.value.hint
    with pytest.raises(SettingError, match="unknown curve"):
        fit(words(), model="m", curve="cubic")


def test_scikit_learn_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in [n for n in sys.modules if n.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError) as caught:
        fit(words(), model="m")
    assert "limelight[calibrate]" in str(caught.value)


def test_settings_come_back(tmp_path: Any) -> None:
    from limelight.calibration import read_calibration

    found = fit(words(), model="m", composite="cp-lrp", labels="a labelled file", objective="recall=0.9")
    assert read_calibration(found.save(tmp_path / "c.json")) == found
    assert found.measures["caught"] >= 0.9


def with_segments(empty: int, spoken: int, apart: float = 3.0) -> Observed:
    found = words()
    rng = np.random.default_rng(1)
    z = np.concatenate([rng.normal(2.0, 0.3, empty), rng.normal(2.0 + apart, 0.3, spoken)])
    return Observed(
        found.z, found.rival, found.label, Observed.of_segments(z.tolist(), [INVENTED] * empty + [SUPPORTED] * spoken)
    )


def test_segments_get_a_threshold_of_their_own() -> None:
    made = fit(with_segments(20, 30), model="m", held_out=with_segments(15, 15))
    assert made.segment_threshold is not None
    assert 2.5 < made.segment_threshold < 4.5
    assert made.measures["segments_caught"] == made.measures["held_out_segments_caught"] == 1
    assert made.measures["segments_lost"] == 0
    assert made.segment_threshold != made.threshold


@pytest.mark.parametrize(("empty", "spoken", "apart"), [(9, 30, 3.0), (30, 9, 3.0), (30, 30, -3.0)])
def test_too_few_segments_or_scores_that_mislead_give_none(empty: int, spoken: int, apart: float) -> None:
    made = fit(with_segments(empty, spoken, apart), model="m")
    assert made.segment_threshold is None
    assert not [k for k in made.measures if k.startswith("segments")]
