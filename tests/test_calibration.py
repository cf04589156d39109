"""Calibrations: what they tell, where they are kept and found, and that damaged ones and those of other models are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import limelight
from limelight.calibration import (
    THRESHOLD,
    Calibration,
    cache_file,
    check_fits,
    find_calibration,
    flag_rule,
    read_calibration,
    spoken,
)
from limelight.errors import DataError, SettingError
from limelight.models.checkpoints.weights_on_disk import FETCHED
from limelight.models.loading import calibration_for, packaged, shipped_calibration

MADE = Calibration(
    "demo-vision", 5.5, (0.0, 2.0, 8.0), (0.1, 0.5, 0.9), needs_rival=False, labels="file", date="2026-01-02",
    traits={"layers": 4}, counts={"supported": 3, "invented": 2, "other": 9},
    measures={"auroc": 0.9, "caught": 0.5, "held_out_caught": 0.25, "false_flags": 0.125},
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_probabilities_are_linear_between_knots_and_constant_beyond() -> None:
    values = {-9.0: 0.1, 0.0: 0.1, 1.0: 0.3, 2.0: 0.5, 5.0: 0.7, 8.0: 0.9, 99.0: 0.9}
    for z, p in values.items():
        assert MADE.probability(z) == pytest.approx(p)
    assert replace(MADE, scores=(3.0,), probabilities=(0.4,)).probability(-1.0) == 0.4


def test_it_survives_its_file(tmp_path: Path) -> None:
    path = MADE.save(tmp_path / "new" / "calibration.json")
    assert read_calibration(path) == MADE
    assert [p.name for p in path.parent.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"scores": (2.0, 1.0, 8.0)},
        {"scores": (0.0, 1.0)},
        {"scores": (), "probabilities": ()},
        {"probabilities": (0.5, 0.4, 0.9)},
        {"probabilities": (0.5, 0.6, 1.1)},
        {"threshold": float("nan")},
        {"margin": -1.0},
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="a calibration needs"):
        replace(MADE, **change)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "cannot read"),
        ("[]", "is not a calibration: expected format 'limelight calibration 1', got 'list'"),
        ('{"format": "limelight calibration 9"}', "got 'limelight calibration 9'"),
        ('{"format": "limelight calibration 1"}', "is damaged"),
    ],
)
def test_files_that_are_no_calibration(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SettingError, match=told) as caught:
        read_calibration(tmp_path / "x.json")
    assert "limelight calibrate" in caught.value.hint
    with pytest.raises(SettingError, match="there is no calibration"):
        read_calibration(tmp_path / "none.json")
    known = json.loads(MADE.save(tmp_path / "y.json").read_text())
    (tmp_path / "y.json").write_text(json.dumps({**known, "extra": 1}))
    with pytest.raises(SettingError, match="extra"):
        read_calibration(tmp_path / "y.json")


def test_the_users_calibration_precedes_that_of_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    assert find_calibration(str(folder), folder) is None
    beside = MADE.save(folder / "calibration.json")
    assert find_calibration(str(folder), folder) == beside
    own = MADE.save(cache_file(str(folder)))
    assert find_calibration(str(folder), folder) == own
    assert cache_file(str(folder)) == cache_file(f"{folder}/../weights")
    assert cache_file("org/model") != cache_file("other/model")


def test_the_rule_records_whether_it_is_a_default() -> None:
    assert flag_rule(None) == {"threshold": THRESHOLD, "needs_rival": True, "margin": 0.0, "default": True}
    assert "a default, not calibrated for this model" in spoken(flag_rule(None))
    rule = flag_rule(MADE)
    assert (rule["threshold"], rule["needs_rival"], rule["default"]) == (5.5, False, False)
    assert rule["caught"] == 0.25  # of words that chose nothing, where there are such
    assert "caught 25% of invented words and 12% of true ones" in spoken(rule)
    assert spoken({}) == ""


def test_load_takes_a_calibration(tmp_path: Path) -> None:
    loaded = limelight.load("demo-vision", calibration=None)
    assert loaded.calibration is None
    fitting = replace(MADE, traits=loaded.sizes)
    check_fits(fitting, loaded.sizes)
    assert limelight.load("demo-vision", calibration=fitting).calibration == fitting
    assert limelight.load("demo-vision", calibration=fitting.save(tmp_path / "c.json")).calibration == fitting
    fitting.save(cache_file("demo-vision"))
    assert limelight.load("demo-vision").calibration == fitting
    with pytest.raises(SettingError, match=r"is for a different model: layers 99 \(here 4\)"):
        limelight.load("demo-vision", calibration=replace(MADE, traits={**loaded.sizes, "layers": 99}))


def test_a_folder_brings_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(packaged("demo-vision"), folder)
    replace(MADE, traits={}).save(folder / "calibration.json")
    found = limelight.load(folder).calibration
    assert found is not None and found.threshold == 5.5


def test_a_place_that_cannot_be_written_is_no_fault_of_the_calibration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    made = Calibration("m", 4.0, (0.0, 1.0), (0.1, 0.9))
    with pytest.raises(DataError, match="cannot be written") as caught:
        made.save(tmp_path / "file" / "calibration.json")
    assert "--out" in caught.value.hint and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", sorted(FETCHED))
def test_the_whispers_bring_theirs_by_either_name(name: str, tmp_path: Path) -> None:
    path = shipped_calibration(name)
    assert path is not None
    assert shipped_calibration(FETCHED[name]) == path
    found = calibration_for(FETCHED[name], "auto")
    assert found is not None and found.model == name
    assert found.segment_threshold is not None and 1 < found.segment_threshold < 5
    assert found.measures["held_out_segments_lost"] <= 0.02
    assert found.measures["held_out_segments_caught"] >= 0.95
    assert shipped_calibration("openai/whisper-large-v3") is None
    replace(found, threshold=1.25).save(cache_file(FETCHED[name]))
    own = calibration_for(FETCHED[name], "auto")
    assert own is not None and own.threshold == 1.25  # the user's own comes first
    assert calibration_for(name, "none") is None
