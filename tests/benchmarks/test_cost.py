from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from limelight.benchmarks.cost import BANDWIDTH, JOBS, METHODS, RATE, WEIGHTS, command_hours, table

ROOT = Path(__file__).resolve().parents[2]
GREEDY, EXACT = METHODS[0], METHODS[4]


def test_hours() -> None:
    assert EXACT.hours(9000, 2) == pytest.approx(9000 * 2 * 206 / RATE / 3600)
    assert GREEDY.hours(500, 110) == pytest.approx(500 * (8 / RATE + 110 * WEIGHTS / BANDWIDTH) / 3600)
    assert METHODS[-1].hours(1, 1) * 3600 == pytest.approx(1 / 0.32)  # the paper's own speed


def test_a_command_is_two_cheap_runs_and_a_dear_one() -> None:
    for job in JOBS:
        one, dear = (m.hours(job.rows, job.tokens) for m in (GREEDY, EXACT))
        assert command_hours(job) == pytest.approx(2 * one + dear)


def test_the_page_holds_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "limelight.benchmarks.cost"], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.strip() == table()
    assert table() in (ROOT / "docs/reproduction.md").read_text()
