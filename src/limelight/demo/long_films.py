"""Long films of the video miniature's world, with an object that is brief or small in them. Numpy, PIL and PyAV.

The miniature is given eight frames of 48 x 48 pixels; a long film has 60 frames, so that it sees one in eight. Kinds of cell:

- "brief/3", "brief/6": frames of 48 x 48 pixels; the object is shown in 3 (6) of them, in its usual size, so that it may be in
  one of the eight frames or in none;
- "small/3": frames of 3 x 48 pixels per side, the object in its usual number of pixels, in 20 to 30 of the frames: small once the
  frames are scaled down;
- "brief-small/6": both, in 6 of the frames.

Two other objects are there in each film for 20 to 30 frames. A film is determined by (split, cell, index); the splits use disjoint
seeds, and backgrounds as in :mod:`limelight.demo.films`. Nothing is trained on them: dev chooses settings, test measures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limelight.demo import film_language as language
from limelight.demo.films import FRAMES as SEEN
from limelight.demo.films import NAMES, SIZE, Appearance, paste, place
from limelight.demo.questions import check_cell
from limelight.demo.scenes import Split, background_of, rng_of, turned
from limelight.types import Clip

FRAMES = 60
RATE = 10  # frames per second
LONG = (20, 31)  # frames of what is not brief
SIDES = (18.0, 24.0)  # of an object, pixels, as in clear films
NOISE = (2.0, 8.0)  # standard deviation, grey levels, as in clear films
CELLS = ("brief/3", "brief/6", "small/3", "brief-small/6")
SMALL = 3  # sides of the frames of small objects, in multiples of what the miniature sees


@dataclass(frozen=True)
class LongFilm:
    """The content of one film; the first of its objects is the one that is brief or small.

    ``appearances`` are in pixels of a frame of 48; ``size`` are the pixels per side of a frame.
    """

    split: Split
    cell: str
    index: int
    size: int
    appearances: tuple[Appearance, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.appearances)

    def part_of(self, name: str) -> tuple[float, float, float, float, float, float] | None:
        """Where and when an object is best seen: its box (left, top, right, bottom) over at most eight frames in the middle of its
        appearance, and when they begin and end, in fractions of the frame and of the film; None where it is absent."""
        found = next((a for a in self.appearances if a.name == name), None)
        if found is None:
            return None
        count = min(SEEN, len(found.frames))
        first = (found.start + found.stop - count) // 2
        ways = [found.centre(frame) for frame in range(first, first + count)]
        reach = found.side / 2
        low = [max(0.0, min(w[i] for w in ways) - reach) / SIZE for i in (0, 1)]
        high = [min(float(SIZE), max(w[i] for w in ways) + reach) / SIZE for i in (0, 1)]
        return low[0], low[1], high[0], high[1], first / FRAMES, (first + count) / FRAMES

    def pixels(self, frames: Sequence[int] = range(FRAMES)) -> npt.NDArray[np.uint8]:
        """Draw frames [n, size, size, 3]."""
        key = ("long film", self.split, self.cell, self.index)
        rng, scale = rng_of(*key, "pixels"), self.size / SIZE
        ground = background_of(rng, self.split, self.size)
        contrast, light, noise = (rng.uniform(*r) for r in ((0.85, 1.1), (-14.0, 14.0), NOISE))
        sprites = [np.asarray(turned(a.name, round(a.side * scale), a.angle), np.float32) for a in self.appearances]
        out = np.empty((len(frames), self.size, self.size, 3), np.uint8)
        for i, frame in enumerate(frames):
            pixels = ground.copy()
            for a, sprite in zip(self.appearances, sprites, strict=True):
                if frame in a.frames:
                    x, y = a.centre(frame)
                    paste(pixels, sprite, (x * scale, y * scale))
            grain = rng_of(*key, "grain", frame).standard_normal(pixels.shape, dtype=np.float32) * noise
            out[i] = np.clip((pixels - 128) * contrast + 128 + light + grain, 0, 255).astype(np.uint8)
        return out

    def encoded(self) -> bytes:
        """Write the film as MP4 (H.264), colours in full resolution."""
        import av

        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "veryfast"})
            stream.width = stream.height = self.size
            stream.pix_fmt = "yuv444p"
            stream.thread_count = 1
            for frame in self.pixels():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return file.getvalue()

    def clip(self) -> Clip:
        """The eight frames that the miniature is given, with the film they were read from."""
        from limelight.media.video import read_video

        return read_video(self.encoded(), SEEN)


@dataclass(frozen=True)
class LongFilmQuestion:
    """One yes/no question about a long film; ``label``: whether the object is there."""

    id: str
    film: LongFilm
    text: str
    label: bool
    cell: str
    object: str


def long_film_questions(split: Split, cell: str, n: int = 1000, seed: int = 0) -> list[LongFilmQuestion]:
    """Return the first n questions of a cell "<kind>/<number>"; half of the answers are yes.

    Raises ValueError for a cell that is not in `CELLS`, or a seed below 0.
    """
    check_cell(cell, CELLS, seed)
    out = []
    for number in range(n):
        rng = rng_of("long film question", split, cell, seed, number)
        label = number % 2 == 0
        absent, *there = (str(name) for name in rng.permutation(NAMES)[:4])
        one = _film(rng, split, cell, 1_000_000 * seed + number, there)
        asked = there[0] if label else absent
        key = f"{split}/{cell}/{seed}/{number}"
        out.append(LongFilmQuestion(key, one, language.ask_what(asked), label, cell, asked))
    return out


def _film(rng: np.random.Generator, split: Split, cell: str, index: int, names: Sequence[str]) -> LongFilm:
    kind, _, number = cell.partition("/")
    brief, small = "brief" in kind, "small" in kind
    sides = (SIDES[0] / SMALL, SIDES[1] / SMALL) if small else SIDES
    placed: list[Appearance] = []
    for i, name in enumerate(names):
        length = int(number) if brief and i == 0 else int(rng.integers(*LONG))
        start = int(rng.integers(0, FRAMES - length + 1))
        placed.append(place(rng, name, start, start + length, sides, 0.1, placed))
    return LongFilm(split, cell, index, SIZE * (SMALL if small else 1), tuple(placed))


__all__ = ["CELLS", "FRAMES", "LongFilm", "LongFilmQuestion", "long_film_questions"]
