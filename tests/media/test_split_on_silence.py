"""Cutting at silences: every sample once, no piece too long, and cuts where it is quiet."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.errors import SettingError
from limelight.media import split_on_silence
from limelight.media.split_on_silence import loudness, pieces
from tests.cli.tiny_audio import RATE, speech


def test_cuts_lie_in_the_silences() -> None:
    samples = speech((0.2, 1.5), (2.0, 3.4), (3.9, 5.6), seconds=6.0)
    found = pieces(samples, RATE, 2.5)
    assert [p.ends_in_silence for p in found] == [True] * len(found)
    cuts = [p.stop / RATE for p in found[:-1]]
    assert all(any(a < c < b for a, b in ((1.5, 2.0), (3.4, 3.9), (5.6, 6.0))) for c in cuts), cuts


def test_a_cut_inside_speech_is_reported() -> None:
    found = pieces(speech((0.0, 4.0), (4.5, 6.0), seconds=6.0), RATE, 1.5)
    assert any(not p.ends_in_silence for p in found)
    assert pieces(speech((0.0, 1.0), seconds=1.0), RATE, 1.5) == pieces(np.zeros(RATE, np.float32), RATE, 1.0)


@given(st.integers(1, 60_000), st.floats(0.2, 3.0), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_pieces_partition_the_sound(size: int, longest: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    samples = (generator.normal(size=size) * np.repeat(generator.random(size // 900 + 1), 900)[:size]).astype(
        np.float32
    )
    found = pieces(samples, 8000, longest)
    assert found[0].start == 0
    assert found[-1].stop == size
    assert all(a.stop == b.start for a, b in itertools.pairwise(found))
    assert all(0 < p.stop - p.start <= longest * 8000 for p in found)
    assert all(p.stop - p.start >= longest * 8000 / 2 - 160 for p in found[:-1])
    assert len(found) == 1 or found[-1].stop - found[-1].start >= longest * 8000 / 4 - 160


def test_levels_and_limits() -> None:
    level = loudness(np.concatenate([np.zeros(8000), np.full(8000, 0.1)]).astype(np.float32), 8000)
    assert level[20] == pytest.approx(-100)
    assert level[150] == pytest.approx(-20, abs=0.1)
    with pytest.raises(SettingError, match="too short"):
        pieces(np.zeros(100, np.float32), 8000, 0.1)


def test_levels_are_measured_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block size changes neither the levels nor, beyond a block, the memory."""
    samples = np.random.default_rng(0).normal(size=30_000).astype(np.float32) * np.linspace(
        0, 1, 30_000, dtype=np.float32
    )
    want = loudness(samples, 8000)
    for size in (1, 1000, 1600, 29_999, 30_000, 30_001):
        monkeypatch.setattr(split_on_silence, "BLOCK", size)
        assert loudness(samples, 8000) == pytest.approx(want, abs=1e-6)
    monkeypatch.undo()
    half_an_hour = np.zeros(1800 * 8000, np.float32)
    tracemalloc.start()
    loudness(half_an_hour, 8000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < half_an_hour.nbytes
