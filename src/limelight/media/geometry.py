"""Maps each entry of a processor's output to the part of the original that it shows, by processing test charts.

A chart is an image of the original's size whose grey value encodes position: a horizontal ramp, a vertical ramp, all
dark, all light. Resizing, cropping, padding, tiling and normalising are linear in the grey values, so that

    u = (chart - dark) / (light - dark)

is the relative horizontal (or vertical) position in the original of every entry of the output, whatever layout the
processor chose; where dark and light are equal, the entry is padding. Nothing is assumed about the processor's settings;
where the result is not linear (a processor that scales each image by its own contrast) it is unknown: None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from limelight.types import Box

Array = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
RAMPS = ("dark", "light", "across", "down")
MOST_LEVELS = 200  # grey levels that can be distinguished after resampling


def chart(name: str, size: tuple[int, int]) -> Bytes:
    """Draw a chart ``[height, width, 3]`` of ``size`` (width, height): one of ``RAMPS``."""
    width, height = size
    if name == "dark":
        return flat(0.0, size)
    if name == "light":
        return flat(1.0, size)
    length, shape = (width, (1, width, 1)) if name == "across" else (height, (height, 1, 1))
    ramp = np.rint(255 * (np.arange(length) + 0.5) / length).astype(np.uint8).reshape(shape)
    return np.ascontiguousarray(np.broadcast_to(ramp, (height, width, 3)))


def flat(level: float, size: tuple[int, int]) -> Bytes:
    """Draw an image ``[height, width, 3]`` of uniform grey ``level`` in [0, 1]."""
    return np.full((size[1], size[0], 3), round(255 * level), np.uint8)


def level(number: int, count: int) -> float:
    """Return the grey level that encodes ``number`` of ``count``."""
    return (number + 0.5) / count


def number_of(levels: Array, count: int) -> Array:
    """Decode grey levels to the numbers they encode; NaN stays NaN."""
    return np.clip(np.floor(levels * count), 0, count - 1)


def read(charts: dict[str, Array]) -> dict[str, Array]:
    """Return ``u`` for every chart except ``dark`` and ``light``; NaN where the output is padding (or mostly padding, at
    an edge that was resampled after padding)."""
    contrast = charts["light"] - charts["dark"]
    most = float(np.abs(contrast).max(initial=0.0))
    safe = np.where(np.abs(contrast) > 0.5 * most, contrast, np.nan) if most else np.full_like(contrast, np.nan)
    return {n: (c - charts["dark"]) / safe for n, c in charts.items() if n not in ("dark", "light")}


@dataclass(frozen=True)
class Tile:
    """One image of a processor's output.

    Attributes:
        medium: index of the original; None for a tile of nothing but padding.
        box: the part of the original, in fractions of width and height; outside [0, 1] where it is padding.
        shape: its (rows, columns) of pixels; 0 where it is a sequence of patches.
        steps: the video frames that each of its time steps shows.
    """

    medium: int | None
    box: Box | None
    shape: tuple[int, int] = (0, 0)
    steps: tuple[tuple[int, ...], ...] = field(default=())

    def cropped(self, shape: tuple[int, int]) -> Tile:
        """Return its top-left ``shape`` (rows, columns)."""
        if self.box is None:
            return self
        left, top, right, bottom = self.box
        down, across = shape[0] / self.shape[0], shape[1] / self.shape[1]
        box = (left, top, left + (right - left) * across, top + (bottom - top) * down)
        return Tile(self.medium, box, shape, self.steps)


def tile(across: Array, down: Array, sizes: Sequence[tuple[int, int]], which: Array | None, when: Array | None,
         counts: Sequence[int]) -> Tile:  # fmt: skip
    """Return the tile whose pixels ``[channels, rows, columns]`` have the readings ``across`` and ``down``.

    Args:
        sizes: (width, height) of every original. counts: frames of each, 0 for an image.
        which, when: readings of the charts that encode the original and the frame, where there are several.
    """
    shape = int(across.shape[-2]), int(across.shape[-1])
    if np.isnan(across).all():
        return Tile(None, None, shape)
    medium = most(which, len(sizes))
    x = _edges(_profile(across, 2), sizes[medium][0])
    y = _edges(_profile(down, 1), sizes[medium][1])
    if x is None or y is None:
        return Tile(medium, None, shape)
    return Tile(medium, (x[0], y[0], x[1], y[1]), shape, (frames_in(when, counts[medium]),) if counts[medium] else ())


def most(which: Array | None, count: int) -> int:
    """Return the original that most readings of the ``which`` chart encode; 0 where there is only one."""
    return 0 if which is None else int(number_of(np.asarray(np.nanmedian(which)), count))


def _profile(readings: Array, axis: int) -> Array:
    """Return the mean reading along one axis of ``[channels, rows, columns]``; NaN where a line is all padding."""
    lines = np.moveaxis(readings, axis, 0).reshape(readings.shape[axis], -1)
    known = ~np.isnan(lines)
    counts = known.sum(1)
    return np.where(counts > 0, np.where(known, lines, 0.0).sum(1) / np.maximum(counts, 1), np.nan)


def _edges(profile: Array, length: int) -> tuple[float, float] | None:
    """Return where the first line begins and the last ends, in fractions of the original's ``length`` pixels, from a
    straight line fitted through the readings at the line centres; None where the fit is not linear.

    An enlarged image repeats its last pixel near an edge, so readings within a pixel of it are left out.
    """
    places = np.flatnonzero(~np.isnan(profile))
    found = profile[places]
    if len(places) < 2:
        return None
    inner = (found > 1 / length) & (found < 1 - 1 / length)
    if inner.sum() >= max(2, len(places) // 8):
        places, found = places[inner], found[inner]
    middles = places + 0.5
    slope, start = np.polyfit(middles, found, 1)
    rough = 1.5 / 255 + 1.0 / length + abs(slope)  # a step of grey, a pixel before and one after resampling
    if slope <= 0 or float(np.abs(slope * middles + start - found).max()) > rough:
        return None
    return snapped(float(start), rough, abs(slope)), snapped(float(start + slope * len(profile)), rough, abs(slope))


def snapped(edge: float, rough: float, pixel: float) -> float:
    """Snap an edge to the original's edge where it lies within the uncertainty of the reading."""
    near = min(rough, max(0.5 * pixel, 0.006))
    for own in (0.0, 1.0):
        if abs(edge - own) <= near:
            return own
    return edge


def frames_in(when: Array | None, count: int) -> tuple[int, ...]:
    """Return which of a video's ``count`` frames occur in the readings; () where they cannot be determined."""
    if count == 1:
        return (0,)
    if when is None:
        return ()
    levels = number_of(when[~np.isnan(when)], count).astype(int)
    numbers, often = np.unique(levels, return_counts=True)
    return tuple(int(n) for n in numbers[often >= 0.2 * often.max()])


def sheet(across: Array, down: Array, grid: tuple[int, int, int], merge: int, size: tuple[int, int],
          when: Array | None, count: int, medium: int) -> Tile:  # fmt: skip
    """Return the tile of patches ``[steps * rows * columns, entries]`` of one original, in row-major order or in
    row-major blocks of ``merge`` x ``merge``.

    Args:
        grid: (steps, rows, columns) of patches.

    The box is None where the patches are in neither order.
    """
    steps, rows, columns = grid
    blank = Tile(medium, None)
    if np.isnan(across).any() or np.isnan(down).any():
        return blank
    x, y = (r.reshape(steps, rows * columns, -1) for r in (across, down))
    block = _laid_out(x[0].mean(1), y[0].mean(1), rows, columns, merge, size)
    if block is None:
        return blank
    shown = () if not count else _steps(when, steps, count)
    return Tile(medium, block, steps=shown)


def _steps(when: Array | None, steps: int, count: int) -> tuple[tuple[int, ...], ...]:
    if when is None:
        return ((0,) if count == 1 else (),) * steps
    return tuple(frames_in(part, count) for part in when.reshape(steps, -1))


def _laid_out(x: Array, y: Array, rows: int, columns: int, merge: int, size: tuple[int, int]) -> Box | None:
    """Return the box of patches with centres ``x``, ``y``, if they are in a known order."""
    for side in dict.fromkeys((merge, 1)):
        if rows % side or columns % side:
            continue
        blocks = np.arange(rows * columns).reshape(rows // side, side, columns // side, side)
        order = blocks.transpose(0, 2, 1, 3).ravel()  # the patch at each position of the sequence
        laid_x, laid_y = np.empty_like(x), np.empty_like(y)
        laid_x[order], laid_y[order] = x, y
        horizontal, vertical = laid_x.reshape(rows, columns), laid_y.reshape(rows, columns)
        edges = _patch_edges(horizontal.mean(0), size[0]), _patch_edges(vertical.mean(1), size[1])
        if edges[0] is None or edges[1] is None:
            continue
        flat_enough = max(float(np.ptp(horizontal, axis=0).max()), float(np.ptp(vertical, axis=1).max())) < 0.5 / max(
            rows, columns, 2
        )
        if flat_enough:
            return edges[0][0], edges[1][0], edges[0][1], edges[1][1]
    return None


def _patch_edges(middles: Array, length: int) -> tuple[float, float] | None:
    if len(middles) == 1:  # a single patch gives its centre, not its width
        return (0.0, 1.0) if abs(float(middles[0]) - 0.5) < 2 / 255 + 0.5 / length else None
    slope, start = np.polyfit(np.arange(len(middles)) + 0.5, middles, 1)
    off = float(np.abs(slope * (np.arange(len(middles)) + 0.5) + start - middles).max())
    if slope <= 0 or off > 0.25 * slope + 1.5 / 255:
        return None
    rough = 2 / 255 + 1 / length + 0.1 * abs(slope)
    return snapped(float(start), rough, abs(slope)), snapped(float(start + slope * len(middles)), rough, abs(slope))


def union(boxes: Sequence[Box]) -> Box:
    """Return the bounding box of all boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def lines(boxes: Sequence[Box], axis: int) -> int:
    """Return the number of tiles side by side (``axis`` 0) or stacked (1)."""
    each = min(b[axis + 2] - b[axis] for b in boxes)
    return round((max(b[axis + 2] for b in boxes) - min(b[axis] for b in boxes)) / each) if each > 0 else 0


def cornered(canvas: Box, cells: tuple[int, int], kept: tuple[int, int]) -> Box:
    """Return the top-left ``kept`` (rows, columns) of a canvas of ``cells``."""
    left, top, right, bottom = canvas
    return left, top, left + (right - left) * kept[1] / cells[1], top + (bottom - top) * kept[0] / cells[0]


def unpadded(canvas: Box, cells: tuple[int, int], size: tuple[int, int]) -> tuple[Box, tuple[int, int]]:
    """Remove the rows or columns of padding from a canvas of ``cells`` (rows, columns), as LLaVA-NeXT does
    (``unpad_image`` of transformers): the same number on either side, so that a cell may contain some padding.

    Args:
        canvas: in fractions of the original. size: (width, height) of the original.

    Returns:
        The box and the remaining (rows, columns).
    """
    (width, height), (rows, columns) = size, cells
    left, top, right, bottom = canvas
    if width / height > columns / rows:
        pad = (rows - int(round(height * (columns / width), 7))) // 2
        each = (bottom - top) / rows
        return (left, top + pad * each, right, bottom - pad * each), (rows - 2 * pad, columns)
    pad = (columns - int(round(width * (rows / height), 7))) // 2
    each = (right - left) / columns
    return (left + pad * each, top, right - pad * each, bottom), (rows, columns - 2 * pad)


def windows(
    lengths: Sequence[int], each: Sequence[float], durations: Sequence[float]
) -> list[tuple[int, float]] | None:
    """Return (clip index, start in seconds) of every run of positions: windows of the audio clips, in order.

    Args:
        lengths: positions of each run. each: seconds per position. durations: of the clips.

    Returns None where the runs do not fit the durations.
    """
    if len(lengths) == len(durations):
        return [(i, 0.0) for i in range(len(lengths))]
    out: list[tuple[int, float]] = []
    sound, start = 0, 0.0
    for length, second in zip(lengths, each, strict=True):
        if sound >= len(durations):
            return None
        out.append((sound, start))
        start += length * second
        if start >= durations[sound] - 0.5 * second or math.isclose(start, durations[sound], abs_tol=0.05):
            sound, start = sound + 1, 0.0
    return out if sound == len(durations) else None
