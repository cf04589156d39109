"""Splitting long audio at silences into non-overlapping pieces that fit a model; every sample is in one piece."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from limelight.errors import SettingError

STEP = 0.01  # seconds between two level measurements
QUIET = 0.2  # minimum length of a silence in seconds
BLOCK = 1 << 20  # samples whose energy is summed at a time
SHORTEST = 0.2  # smallest permitted maximum length of a piece in seconds


@dataclass(frozen=True)
class Piece:
    """Samples ``[start, stop)`` of a clip; ``ends_in_silence``: whether it does, or at the end of the clip."""

    start: int
    stop: int
    ends_in_silence: bool = True


def pieces(samples: npt.NDArray[np.float32], rate: int, longest: float) -> list[Piece]:
    """Split samples into pieces of at most ``longest`` seconds, at the quietest point in the second half of each window.

    A point is silent when its level, averaged over 0.2 s, lies in the lowest quarter of the range between the 5th and the
    95th percentile of the clip's level, in decibels; a piece that had to be cut elsewhere has ``ends_in_silence=False``. The
    last of several pieces is at least a quarter of ``longest`` long.

    Raises:
        SettingError: ``longest`` is shorter than 0.2 s.
    """
    given: object = longest
    if not isinstance(given, (int, float, np.number)) or not math.isfinite(given) or given < SHORTEST:
        raise SettingError(
            f"expected pieces of at least {SHORTEST} s, got {given!r}: too short, or no length",
            hint="10 to 30 seconds are common",
        )
    most = int(longest * rate)
    if samples.size <= most:
        return [Piece(0, int(samples.size))]
    level = loudness(samples, rate)
    low, high = np.percentile(level, [5, 95])
    silence = low + 0.25 * (high - low)
    found: list[Piece] = []
    start = 0
    while samples.size - start > most:
        first = int(np.ceil((start + most / 2) / (STEP * rate)))
        latest = min(start + most, samples.size - most / 4)  # keeps the last piece long enough for a model to use
        last = max(first + 1, int(latest / (STEP * rate)))
        biased = level[first:last] - np.linspace(0, 1, last - first)  # prefers later points, by up to 1 dB
        at = first + int(biased.argmin())
        stop = min(int(at * STEP * rate), start + most)
        found.append(Piece(start, stop, bool(level[at] <= silence)))
        start = stop
    return [*found, Piece(start, int(samples.size))]


def loudness(samples: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float64]:
    """Return the level in dBFS (at least -100) around every multiple of 10 ms, averaged over 0.2 s."""
    size = max(1, int(QUIET * rate))
    centres = (np.arange(int(samples.size / (STEP * rate)) + 1) * STEP * rate).astype(int)
    low, high = np.clip(centres - size // 2, 0, samples.size), np.clip(centres + size // 2 + 1, 0, samples.size)
    power = (_energy(samples, high) - _energy(samples, low)) / np.maximum(high - low, 1)
    level: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(power, 1e-10))
    return level


def _energy(samples: npt.NDArray[np.float32], at: npt.NDArray[np.int_]) -> npt.NDArray[np.float64]:
    """Sum of squares of the samples before each of the rising positions ``at``, block by block: an hour takes no more
    memory than a minute."""
    found = np.zeros(len(at))
    before = 0.0
    for start in range(0, samples.size, BLOCK):
        total = np.concatenate([[0.0], np.cumsum(samples[start : start + BLOCK].astype(np.float64) ** 2)])
        first, last = np.searchsorted(at, [start, start + len(total) - 1], side="right")
        found[first:last] = before + total[at[first:last] - start]
        before += total[-1]
    return found
