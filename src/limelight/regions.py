"""Which part of an original picture, film or sound the positions of a span show, and a film's frames: plain values, free of any model.

Regions are read off a model's processor by :mod:`limelight.models.regions`; ``None`` in their place means: not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from limelight.errors import SettingError

# (left, top, right, bottom)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Region:
    """Which part of an original picture (or of the frames of a film) the positions of a span show.

    Attributes:
        source: which picture of the prompt; which film where ``frames`` is not empty.
        size: (width, height) of the original in pixels, turned upright.
        box: in pixels of the original; the span's grid (without its margin) divides it evenly. It reaches outside the
            original where the processor padded, and is empty where all of it is padding.
        frames: of a film: the numbers of the frames that each step in time of the span's grid shows.
        tiles: the boxes of the tiles that a span stands for whose own grid does not lay them out (Llama 3.2 Vision).

    Raises:
        SettingError: a size that is not positive, or a box whose edges are swapped.
    """

    source: int
    size: tuple[int, int]
    box: Box
    frames: tuple[tuple[int, ...], ...] = ()
    tiles: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if min(self.size) <= 0 or not (left <= right and top <= bottom):
            raise SettingError(
                f"a region needs a size of at least 1 x 1 and left <= right, top <= bottom, got {self.size}, {self.box}",
                hint="boxes are (left, top, right, bottom) in pixels of the original",
            )

    @property
    def fractions(self) -> Box:
        """``box`` in fractions of the original's width and height."""
        (width, height), (left, top, right, bottom) = self.size, self.box
        return left / width, top / height, right / width, bottom / height

    @property
    def seen(self) -> Box | None:
        """The part of ``box`` that lies on the original; None where it is all padding."""
        (width, height), (left, top, right, bottom) = self.size, self.box
        found = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        return found if found[0] < found[2] and found[1] < found[3] else None

    def cell(self, row: int, column: int, grid: tuple[int, int]) -> Box:
        """The box of one cell of ``grid`` (rows, columns), in pixels of the original."""
        left, top, right, bottom = self.box
        wide, high = (right - left) / grid[1], (bottom - top) / grid[0]
        return left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high

    def shown(self, grid: tuple[int, int]) -> list[list[float]]:
        """``[rows][columns]``: how much of each cell of ``grid`` lies on the original (0: it is padding)."""

        def along(start: float, stop: float, cells: int, length: int) -> list[float]:
            each = (stop - start) / cells
            edges = [(start + i * each, start + (i + 1) * each) for i in range(cells)]
            return [max(0.0, min(b, length) - max(a, 0.0)) / each if each else 0.0 for a, b in edges]

        left, top, right, bottom = self.box
        across = along(left, right, grid[1], self.size[0])
        return [[y * x for x in across] for y in along(top, bottom, grid[0], self.size[1])]


@dataclass(frozen=True, slots=True)
class Interval:
    """Where in an original sound a span begins: its positions stand for ``Span.seconds`` each, from ``start`` on.

    Attributes:
        source: which sound of the prompt.
        start: seconds from the sound's beginning.
        duration: of the whole sound in seconds; positions from there on hold what the processor padded it with.
    """

    source: int
    start: float
    duration: float


@dataclass(frozen=True)
class Clip:
    """Frames of a video, and when each was shown.

    Attributes:
        frames: pictures of one size, in order.
        seconds: when each was shown, from the start of the video.
        fps: frames a second of the video they were taken from (None: not known; the frames are all there is).
        duration: of the whole video in seconds (None: to the end of the last frame).

    Raises:
        SettingError: no frames, or times that are not one a frame, or fall, or lie before 0.
    """

    frames: tuple[Any, ...]
    seconds: tuple[float, ...]
    fps: float | None = None
    duration: float | None = None

    def __post_init__(self) -> None:
        rising = all(a <= b for a, b in zip(self.seconds, self.seconds[1:], strict=False))
        if not self.frames or len(self.frames) != len(self.seconds) or self.seconds[0] < 0 or not rising:
            raise SettingError(
                f"a clip needs frames and as many rising times, got {len(self.frames)} frames at {self.seconds[:9]} s",
                hint="Clip(frames, seconds) with one time a frame, counted from the start of the video",
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def length(self) -> float:
        """Seconds of the whole video."""
        if self.duration is not None:
            return self.duration
        step = (self.seconds[-1] - self.seconds[0]) / (len(self) - 1) if len(self) > 1 else 1.0
        return self.seconds[-1] + (1 / self.fps if self.fps else step)
