"""The look-again table: budgets, joins and gates derived from one recorded run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench.look_again_data import FILMS
from bench.look_again_table import render

from bench import look_again as bench
from limelight.demo.long_films import CELLS

RAW: dict[str, Any] = {  # margin, evidence, box of each view
    "truth": [True, False, True],
    "margin": [9.0, 9.0, 9.0],
    "views": [
        [[-1.0, 0.1, None], [-2.0, 0.2, [0, 0, 1, 1]], [5.0, 3.0, [1, 1, 2, 2]]],
        [[-4.0, 0.3, None], [-1.0, 0.2, [0, 0, 1, 1]], [-3.0, 0.1, [1, 1, 2, 2]]],
        [[6.0, 2.0, None], [1.0, 0.5, [0, 0, 1, 1]], [-2.0, 0.1, [1, 1, 2, 2]]],
    ],
    "seconds": 2.0,
}


@pytest.mark.parametrize(
    ("budget", "join", "gate", "want"),
    [
        (3, "evidence", "always", [5.0, -4.0, 6.0]),
        (2, "evidence", "always", [-2.0, -4.0, 6.0]),
        (3, "mean", "always", [2 / 3, -8 / 3, 5 / 3]),
        (3, "crops", "always", [1.5, -2.0, -0.5]),
        (3, "truth", "always", [5.0, -4.0, 6.0]),
        (3, "any", "always", [5.0, -1.0, 6.0]),
        (3, "last", "always", [5.0, -1.0, 1.0]),
        (3, "crops", "uncertain", [1.5, -4.0, 6.0]),  # at a margin of -1 the answer is uncertain
        (3, "crops", "truth", [1.5, -4.0, 6.0]),  # only the first is wrong
        (3, "second-picture", "always", [9.0, 9.0, 9.0]),
    ],
)
def test_scores_are_derived(budget: int, join: str, gate: str, want: list[float]) -> None:
    assert bench.margins(RAW, budget, join, gate).tolist() == pytest.approx(want)


def test_how_often_a_gate_opens() -> None:
    assert bench.looked(RAW, "uncertain") == pytest.approx(1 / 3) and bench.looked(RAW, "truth") == pytest.approx(1 / 3)
    assert bench.looked({"views": [[], []]}, "uncertain") == 0.0


def test_intervals_are_paired() -> None:
    truth = np.arange(40) % 2 == 0
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(40)
    perfect, poor = truth + 0.1 * noise, noise
    one, two, same = bench.intervals([perfect, poor, perfect], truth, resamples=200)
    assert one[0] == 1.0 and one[3] == 0.0 and same[3:] == [0.0, 0.0, 0.0]
    assert two[3] == pytest.approx(two[0] - 1.0, abs=1e-4) and two[4] <= two[3] <= two[5] < 0


def test_the_table_has_every_row_that_was_measured() -> None:
    found = {"greedy": {**RAW, "views": [[], [], []]}, bench.OURS: RAW, "gradient norm": RAW}
    table = render({"questions": 3, "split": "test", "cells": {"2x2/2": bench.summary("2x2/2", found)}})
    assert "| look again @3 |" in table and "| gradient norm @2 |" in table and "| control: greedy |" in table
    assert "how: mean of all views @2" in table and "Not measured yet" in table and "CP-LRP" in table
    assert len({r.name for r in bench.ROWS}) == len(bench.ROWS)


def test_scenes_of_the_real_model_have_a_table_of_their_own() -> None:
    found = {"greedy": {**RAW, "views": [[], [], []]}, bench.OURS: RAW}
    table = render({"questions": 3, "split": "test", "cells": {"scenes/3": bench.summary("scenes/3", found)}})
    assert "smol-vision, scenes of 3 times the side that it sees, 3 questions per cell" in table
    assert "| look again @2 |" in table and "+0.000 [+0.000, +0.000]" in table


def test_films_have_a_section_of_their_own() -> None:
    found = {"greedy": {**RAW, "views": [[], [], []]}, bench.OURS: RAW, "random": RAW, "oracle box": RAW}
    cells = {c: bench.summary(c, found) for c in ("brief/3", "small/3")}
    table = render({"questions": 3, "split": "test", "cells": cells})
    assert "Films of 60 frames" in table and "| look again @3 |" in table and "| control: random @2 |" in table
    assert "in 3 of 60 frames | small, 3 x |" in table and "Processor time over greedy" in table
    assert "Films" not in render({"questions": 3, "split": "test", "cells": {"2x2/2": bench.summary("2x2/2", found)}})
    assert set(bench.FILM_CELLS) == set(FILMS) == set(CELLS)
