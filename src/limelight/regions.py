"""Regions and intervals of the original media that the positions of a span show, and video clips; independent of any model.

Regions are determined from a model's processor by :mod:`limelight.models.regions`; ``None`` means unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from limelight.errors import SettingError

# (left, top, right, bottom)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Region:
    """The part of an original image (or of the frames of a video) that the positions of a span show.

    Attributes:
        source: index of the image in the prompt; of the video where ``frames`` is not empty.
        size: (width, height) of the upright original in pixels.
        box: in pixels of the original; the span's grid (without its margin) divides it evenly. It extends outside the
            original where the processor padded, and is empty where everything is padding.
        frames: for a video, the frame indices shown by each time step of the span's grid.
        tiles: boxes of the tiles of a span whose grid does not represent their layout (Llama 3.2 Vision).

    Raises:
        SettingError: a size that is not positive, or a box with swapped edges.
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
        """The part of ``box`` inside the original; None where it is all padding."""
        (width, height), (left, top, right, bottom) = self.size, self.box
        found = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
        return found if found[0] < found[2] and found[1] < found[3] else None

    def cell(self, row: int, column: int, grid: tuple[int, int]) -> Box:
        """The box of one cell of ``grid`` (rows, columns), in pixels of the original."""
        left, top, right, bottom = self.box
        wide, high = (right - left) / grid[1], (bottom - top) / grid[0]
        return left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high

    def shown(self, grid: tuple[int, int]) -> list[list[float]]:
        """Return ``[rows][columns]``: the share of each cell of ``grid`` inside the original (0: padding)."""

        def along(start: float, stop: float, cells: int, length: int) -> list[float]:
            each = (stop - start) / cells
            edges = [(start + i * each, start + (i + 1) * each) for i in range(cells)]
            return [max(0.0, min(b, length) - max(a, 0.0)) / each if each else 0.0 for a, b in edges]

        left, top, right, bottom = self.box
        across = along(left, right, grid[1], self.size[0])
        return [[y * x for x in across] for y in along(top, bottom, grid[0], self.size[1])]


@dataclass(frozen=True, slots=True)
class Interval:
    """The start of a span in an original audio clip: its positions cover ``Span.seconds`` each, from ``start`` on.

    Attributes:
        source: index of the clip in the prompt.
        start: start in seconds.
        duration: length of the whole clip in seconds; positions after it are padding.
    """

    source: int
    start: float
    duration: float


@dataclass(frozen=True, slots=True)
class TakenView:
    """A view of a medium that a strategy took before it answered (:mod:`limelight.decoding.methods.look_again`).

    Attributes:
        kind: image, audio or video; ``source``: its index among the prompt's media of that kind.
        box: the part of the picture (or of every frame) in pixels; None: all of it.
        interval: the seconds of a sound or a film (start, stop); None: all of it.
        answer: the likeliest next token from this view alone.
        margin: the decision's logit difference in this view; ``between``: the two tokens that it lies between.
        weight: of this view's logits in the answer; the weights of an answer's views sum to 1.
        evidence: how far the next token departs from what the model says of empty media, in nats; None: not measured.
    """

    kind: str
    source: int
    box: Box | None = None
    interval: tuple[float, float] | None = None
    answer: str = ""
    margin: float = 0.0
    between: tuple[str, str] = ("", "")
    weight: float = 0.0
    evidence: float | None = None


@dataclass(frozen=True)
class Clip:
    """Frames of a video with timestamps.

    Attributes:
        frames: images of one size, in order.
        seconds: time of each frame from the start of the video.
        fps: frames per second of the original video (None: unknown; the frames are the whole video).
        duration: length of the whole video in seconds (None: to the end of the last frame).
        source: what it was read from (a file or its bytes), to read further frames; None: unknown.

    Raises:
        SettingError: no frames, or times that are not one per frame, decreasing or negative.
    """

    frames: tuple[Any, ...]
    seconds: tuple[float, ...]
    fps: float | None = None
    duration: float | None = None
    source: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        rising = all(a <= b for a, b in zip(self.seconds, self.seconds[1:], strict=False))
        if not self.frames or len(self.frames) != len(self.seconds) or self.seconds[0] < 0 or not rising:
            raise SettingError(
                f"a clip needs frames and the same number of non-decreasing times, got {len(self.frames)} frames at {self.seconds[:9]} s",
                hint="Clip(frames, seconds) with one time per frame, from the start of the video",
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def length(self) -> float:
        """The length of the whole video in seconds."""
        if self.duration is not None:
            return self.duration
        step = (self.seconds[-1] - self.seconds[0]) / (len(self) - 1) if len(self) > 1 else 1.0
        return self.seconds[-1] + (1 / self.fps if self.fps else step)
