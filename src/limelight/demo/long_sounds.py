"""Long recordings of the audio miniature's world with one short event in them. Numpy only.

The miniature hears 4 seconds; a cell "event/20" has 20, with one of the 16 sounds for ``LENGTH`` seconds. A recording is
determined by (split, seconds, index); the splits use disjoint seeds, and noises as in :mod:`limelight.demo.sounds`. Nothing is
trained on them: dev chooses settings, test measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limelight.demo import sound_language as language
from limelight.demo.questions import check_cell
from limelight.demo.scenes import rng_of
from limelight.demo.sounds import EVENTS, Split, background_of
from limelight.demo.synthesis import RATE, Floats, make

LENGTH = 0.3  # seconds of the event
RATIO = (12.0, 28.0)  # of event to noise in decibels, as in clear recordings
SECONDS = (4, 20)
CELLS = tuple(f"event/{seconds}" for seconds in SECONDS)


@dataclass(frozen=True)
class LongSound:
    """One recording: its sound, and when it is heard (onset, offset) in seconds."""

    split: Split
    seconds: int
    index: int
    name: str
    span: tuple[float, float]
    seed: int

    def samples(self) -> Floats:
        """Render the audio: float32 ``[seconds * 16000]``, within -1..1."""
        rng = rng_of("long", self.split, self.seconds, self.index, "samples")
        loudness = 10 ** (rng.uniform(-32, -16) / 20)
        count = self.seconds * RATE
        mixed = background_of(rng, self.split, count).copy()
        start, stop = (round(t * RATE) for t in self.span)
        event = make(self.name, np.random.default_rng([self.seed, 7]), stop - start)
        mixed[start:stop] += event * np.float32(10 ** (rng.uniform(*RATIO) / 20))
        scale = np.float32(loudness) / np.sqrt(np.mean(np.square(mixed[max(0, start - RATE) : stop + RATE])))
        out: Floats = np.clip(mixed * scale, -1, 1).astype(np.float32)
        return out


@dataclass(frozen=True)
class SoundQuestion:
    """One yes/no question about a recording; ``label``: whether the sound is there."""

    id: str
    recording: LongSound
    text: str
    label: bool
    cell: str
    object: str


def sound_questions(split: Split, cell: str, n: int = 1000, seed: int = 0) -> list[SoundQuestion]:
    """Return the first n questions of a cell "event/<seconds>"; half of the answers are yes.

    Raises ValueError for a cell that is not in `CELLS`, or a seed below 0.
    """
    check_cell(cell, CELLS, seed)
    seconds, out = int(cell.partition("/")[2]), []
    for number in range(n):
        rng = rng_of("long question", split, cell, seed, number)
        label = number % 2 == 0
        there, absent = (EVENTS[i] for i in rng.permutation(len(EVENTS))[:2])
        onset = round(float(rng.uniform(0.05, seconds - LENGTH - 0.05)), 3)
        span = (onset, round(onset + LENGTH, 3))
        one = LongSound(split, seconds, 1_000_000 * seed + number, there, span, int(rng.integers(2**31)))
        asked = there if label else absent
        out.append(SoundQuestion(f"{split}/{cell}/{seed}/{number}", one, language.ask(asked), label, cell, asked))
    return out


__all__ = ["CELLS", "LENGTH", "LongSound", "SoundQuestion", "sound_questions"]
