"""The frontier: Holm's method by hand, length adjustment on runs whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.benchmarks.frontier import caption_blocks, compared, frontier, frontier_table, holm, intercept
from limelight.benchmarks.results import Run
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.chair import caption_block
from limelight.benchmarks.scorers.measure import Block
from limelight.errors import SettingError
from limelight.types import Sample
from tests.benchmarks.official import WRITERS


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    found = holm([0.02, math.nan, 0.02])
    assert found[::2] == pytest.approx([0.04, 0.04])
    assert math.isnan(found[1])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= q <= 1 for p, q in zip(ps, found, strict=True))
    assert all(found[i] <= found[j] for i in range(len(ps)) for j in range(len(ps)) if ps[i] < ps[j])
    # closed testing: with one rejected at the level, Bonferroni would reject it too
    assert min(found) == pytest.approx(min(1.0, min(ps) * len(ps)))


def captions(rows: list[tuple[float, float]]) -> Block:
    """A block of captions, from (has a hallucinated object, words)."""
    columns = [
        (f"{i}", {"captions": 1.0, "with_hallucination": h, "mentions": 4.0, "hallucinated": h, "recalled": 2.0,
                  "true": 4.0, "words": w})
        for i, (h, w) in enumerate(rows)
    ]  # fmt: skip
    return caption_block("", columns)


def test_the_intercept_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    d, length = rng.normal(size=50), rng.normal(size=50)
    sums = {"n": 50.0, "d": d.sum(), "l": length.sum(), "dl": (d * length).sum(), "ll": (length * length).sum()}
    assert intercept({k: np.asarray(v) for k, v in sums.items()}) == pytest.approx(np.polyfit(length, d, 1)[1])
    same = {**sums, "l": 150.0, "dl": 3 * d.sum(), "ll": 450.0}
    assert intercept({k: np.asarray(v) for k, v in same.items()}) == pytest.approx(d.mean())


def test_a_decoder_that_merely_stops_early_gains_nothing_at_equal_length() -> None:
    rng = np.random.default_rng(1)
    n = 600
    long, short = rng.integers(60, 100, n), rng.integers(20, 100, n)
    draw = rng.uniform(size=n)  # one threshold an image: hallucination depends on the number of words alone
    a = captions([(float(u < w / 120), float(w)) for u, w in zip(draw, long, strict=True)])
    b = captions([(float(u < w / 120), float(w)) for u, w in zip(draw, short, strict=True)])
    found = compared(a, b, resamples=500)
    assert found["CHAIR_s"].high < -0.05
    assert found["CHAIR_s at equal length"].low < 0 < found["CHAIR_s at equal length"].high
    assert abs(found["CHAIR_s at equal length"].difference) < 0.03
    better = captions([(float(u < w / 120 - 0.2), float(w)) for u, w in zip(draw, short, strict=True)])
    assert compared(a, better, resamples=500)["CHAIR_s at equal length"].high < -0.1


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    """Captions with all, and ever fewer of the objects: 0.5 recalls as much as greedy with less hallucination."""
    WRITERS["chair"](tmp_path / "data")
    said = {
        "greedy": "A person, a dog, a bus, a train, a toilet.",
        "alpha=0.5": "A person, a dog, a bus, a cup, a train.",
        "alpha=4": "A person and a dog.",
        "alpha=8": "A train.",
    }
    out = {}
    for name, caption in said.items():
        # the setting is what a table shows
        strategy = "greedy" if name == "greedy" else "contrast"
        alpha = {} if name == "greedy" else {"alpha": float(name[6:])}
        settings = {"strategy": strategy, "strategy_settings": {**alpha, "beta": 0.1}}

        def answer(sample: Sample, caption: str = caption) -> str:
            return caption

        folder = tmp_path / "runs" / name
        out[name] = run("chair", answer, folder, data=tmp_path / "data", settings=settings, progress=False).run
    return out


def test_frontier_of_a_sweep(runs: dict[str, Run]) -> None:
    points = {p.name: p for p in frontier(list(runs.values()), runs["greedy"], resamples=200)}
    assert list(points) == ["greedy", "alpha=0.5", "alpha=4", "alpha=8"]
    assert {n for n, p in points.items() if p.on_front} == {"alpha=0.5", "alpha=4"}
    assert points["greedy"].effects == {}
    assert points["alpha=4"].effects["CHAIR_i"].difference == pytest.approx(-0.4)
    assert points["alpha=8"].effects["recall"].difference == pytest.approx(-0.75)
    # four identical captions: every resample is the same, and twelve tests are corrected together
    tested = [e for p in points.values() for e in p.effects.values()]
    assert len(tested) == 12
    assert all(e.holm >= e.p for e in tested)
    assert min(e.holm for e in tested) == pytest.approx(12 * 2 / 201)


def test_the_table_names_what_varies(runs: dict[str, Run]) -> None:
    table = frontier_table(list(runs.values()), runs["greedy"], resamples=50)
    assert [row[:2] for row in table.rows] == [
        ("alpha=8", "alpha=8.0"), ("alpha=4", "alpha=4.0"), ("greedy", ""), ("alpha=0.5", "alpha=0.5"),
    ]  # fmt: skip
    assert table.rows[1][-1] == "yes"
    assert table.header[-1] == "on the frontier"
    assert "Holm" in " ".join(table.notes)


def test_what_cannot_be_compared(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at least two"):
        frontier([runs["greedy"]], runs["greedy"])
    with pytest.raises(SettingError, match="no captions called 'caption-none'"):
        caption_blocks(runs["greedy"], name="caption-none")
    WRITERS["mme"](tmp_path / "mme")
    other = run("mme", lambda s: "Yes", tmp_path / "run", data=tmp_path / "mme", progress=False).run
    with pytest.raises(SettingError, match="no captions to compare") as error:
        frontier([other, runs["greedy"]], runs["greedy"])
    assert "chair" in str(error.value)
