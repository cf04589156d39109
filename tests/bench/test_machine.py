"""Ratios have no more digits than their intervals support, and nothing is written on a busy machine."""

from __future__ import annotations

import os

import pytest

from bench import machine


@pytest.mark.parametrize(
    ("ratio", "low", "high", "want"),
    [
        (1.304, 1.24, 1.38, "1.3 [1.24, 1.38]"),
        (1.304, 1.296, 1.312, "1.30 [1.30, 1.31]"),
        (2.08, 2.08, 2.08, "2.08 [2.08, 2.08]"),
        (3.99, 3.4, 4.6, "4 [3.4, 4.6]"),
        (3.99, 2.9, 5.1, "4 [2.9, 5.1]"),
        (595.62, 570.0, 640.0, "600 [570, 640]"),
        (595.62, 590.0, 601.0, "600 [590, 601]"),
        (26.44, 26.31, 27.79, "26.4 [26.3, 27.8]"),
        (1.03, 1.01, 1.15, "1.03 [1.01, 1.15]"),
    ],
)
def test_digits(ratio: float, low: float, high: float, want: str) -> None:
    assert machine.shown(ratio, low, high) == want


def test_a_ratio_is_the_median_of_pairs() -> None:
    found = machine.ratio_of([2.0, 4.4, 6.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["ratio"] == 2.0
    assert 2.0 <= found["low"] <= found["high"] <= 2.2


def test_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    with pytest.raises(SystemExit, match="--busy"):
        machine.require_quiet(busy=False)
    machine.require_quiet(busy=True)
    assert machine.about()["load"] == 99.0
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    machine.require_quiet(busy=False)
    assert machine.about(2)["threads"] == 2
    assert machine.processor()
