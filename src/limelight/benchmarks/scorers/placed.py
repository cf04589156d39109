"""Mapping of relevance to the original: how much of the true region the model saw, and which part each position shows.

A reply's relevance covers the part of the original that the processor kept: ``image_boxes`` and the audio's ``duration``
(see :class:`limelight.benchmarks.task.Reply`). Only what the model saw is scored: cells of nothing but padding and true
regions that the processor cropped entirely are not scored, and both are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from limelight.benchmarks.scorers.grounding import (
    Box,
    box_coverage,
    event_coverage,
    polygon_coverage,
)
from limelight.benchmarks.scorers.measure import Array, Block, block, count, share
from limelight.errors import DataError
from limelight.types import Record

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
RASTER = 64  # resolution (per side) at which the visible part of a region is computed where tiles leave gaps
Coverage = Callable[[tuple[int, int], Box], Array]


@dataclass(frozen=True)
class Placed:
    """Relevance ``[n]`` of the positions that show part of the original, and the share of each that lies in the true region.

    Attributes:
        seen: share of the true region that the model saw, in [0, 1].
        padding: share of ``|R|`` on positions that show nothing but padding.
    """

    relevance: Array
    coverage: Array
    seen: float
    padding: float


def image_parts(record: Record) -> list[tuple[Array, Box]] | None:
    """Return grids ``[rows, columns]`` and the part of the image each covers, in fractions; None without relevance, []
    where the location is unknown.

    Raises:
        DataError: the numbers of grids and boxes differ.
    """
    found = record.meta.get("image_relevance")
    if found is None:
        return None
    boxes = record.meta.get("image_boxes", [WHOLE])
    if boxes is None:
        return []
    grids = found if found and found[0] and isinstance(found[0][0], (list, tuple)) else [found]
    if len(grids) != len(boxes) or any(len(b) != 4 for b in boxes):
        raise DataError(
            f"{record.id}: {len(grids)} grids of image_relevance, {len(boxes)} image_boxes",
            hint="one box (left, top, right, bottom) in fractions of the image per grid",
        )
    return [(np.asarray(g, dtype=np.float64), (b[0], b[1], b[2], b[3])) for g, b in zip(grids, boxes, strict=True)]


def _shown(grid: tuple[int, int], over: Box) -> Array:
    """Share of each cell ``[rows, columns]`` of a grid covering ``over`` that lies within the image."""
    if over[0] >= over[2] or over[1] >= over[3]:
        return np.zeros(grid)
    return np.clip(box_coverage(grid, [within(WHOLE, over)]), 0, 1)


def within(box: Box, over: Box) -> Box:
    """Convert a box of the image to fractions of a part of it, clipped to that part."""
    wide, high = over[2] - over[0], over[3] - over[1]
    left, right = ((min(max(x, over[0]), over[2]) - over[0]) / wide for x in (box[0], box[2]))
    top, bottom = ((min(max(y, over[1]), over[3]) - over[1]) / high for y in (box[1], box[3]))
    return left, top, right, bottom


def boxes_over(boxes: Sequence[Box]) -> Coverage:
    """Coverage by a union of boxes (in fractions of the image): share of each cell of a grid over part of the image."""
    box_coverage((1, 1), boxes)  # raises for invalid boxes

    def coverage(grid: tuple[int, int], over: Box) -> Array:
        cut = [within(b, over) for b in boxes]
        return box_coverage(grid, [b for b in cut if b[0] < b[2] and b[1] < b[3]])

    return coverage


def polygons_over(polygons: Sequence[Sequence[float]]) -> Coverage:
    """Coverage by a union of polygons (x, y, x, y, ... in fractions of the image)."""

    def coverage(grid: tuple[int, int], over: Box) -> Array:
        sides = over[2] - over[0], over[3] - over[1]
        moved = [[(v - over[k % 2]) / sides[k % 2] for k, v in enumerate(p)] for p in polygons]
        return polygon_coverage(grid, moved, raster=max(16, 512 // max(grid)))

    return coverage


def place(parts: Sequence[tuple[Array, Box]], coverage: Coverage) -> Placed:
    """Match the relevance of grids over parts of an image with a region of the image."""
    relevance, covered = [], []
    lost = total = 0.0
    for grid, over in parts:
        shape = grid.shape[0], grid.shape[1]
        shown = _shown(shape, over)
        real = shown > 1e-6
        inside = coverage(shape, over) if real.any() else np.zeros(shape)
        relevance.append(grid[real])
        covered.append(np.clip(inside[real] / shown[real], 0, 1))
        total += float(np.abs(grid).sum())
        lost += float(np.abs(grid[~real]).sum())
    return Placed(
        np.concatenate(relevance),
        np.concatenate(covered),
        _seen(coverage, [within(over, WHOLE) for _, over in parts]),
        lost / total if total else 0.0,
    )


def _seen(coverage: Coverage, parts: Sequence[Box]) -> float:
    """Return the share of the region inside the union of the parts of the image."""
    boxes = [b for b in parts if b[0] < b[2] and b[1] < b[3]]
    area = float(coverage((1, 1), WHOLE)[0, 0])
    if not boxes or not area:
        return 0.0
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    around = min(lefts), min(tops), max(rights), max(bottoms)
    size = float((around[2] - around[0]) * (around[3] - around[1]))
    if float(box_coverage((1, 1), boxes)[0, 0]) > 0.999 * size:  # the parts fill their bounding box
        return min(1.0, float(coverage((1, 1), around)[0, 0]) * size / area)
    if not any(float(coverage((1, 1), b)[0, 0]) for b in boxes):
        return 0.0
    fine = coverage((RASTER, RASTER), WHOLE)
    seen = float((fine * box_coverage((RASTER, RASTER), boxes)).sum())
    return min(1.0, seen / float(np.asarray(fine).sum()))


def place_events(record: Record, events: Sequence[tuple[float, float]]) -> Placed | None:
    """Match the relevance of audio positions with events (onset, offset), in seconds; None without relevance.

    Positions from ``duration`` on are padding. Parts of events after the last position were not seen by the model.
    """
    found = record.meta.get("audio_relevance")
    if found is None:
        return None
    scores, seconds = np.asarray(found["scores"], dtype=np.float64), float(found["seconds"])
    edges = np.arange(len(scores) + 1) * seconds
    duration = float(found.get("duration", edges[-1]))
    real = edges[:-1] < duration - 1e-6
    if not real.any():
        raise DataError(f"{record.id}: no position of audio_relevance is before {duration} s", hint="check seconds")
    shown = np.minimum(edges[1:], duration)[real] - edges[:-1][real]
    inside = event_coverage(len(scores), seconds, events)[real] * seconds
    inside, total = np.minimum(inside, shown), float(np.abs(scores).sum())
    last = max(off for _, off in events)
    return Placed(
        scores[real],
        inside / shown,
        min(1.0, float(inside.sum()) / (float(event_coverage(1, last, events)[0]) * last)),
        float(np.abs(scores[~real]).sum()) / total if total else 0.0,
    )


def place_moments(record: Record, moments: Sequence[tuple[float, float]]) -> Placed | None:
    """Match the relevance of a video's frames with the moments (start, stop) of its evidence, in seconds; None without
    relevance.

    A frame stands for the time from itself to the next one, the last for as long as the one before. Moments before the
    first frame and after the last were not seen by the model.
    """
    found = record.meta.get("video_relevance")
    if found is None:
        return None
    each = [np.atleast_1d(np.asarray(row, dtype=np.float64)) for row in found["scores"]]
    seconds = np.asarray(found["seconds"], dtype=np.float64)
    if len(each) != len(seconds) or len(each) < 2 or not (np.diff(seconds) > 0).all():
        raise DataError(
            f"{record.id}: video_relevance has {len(each)} frames and the times {seconds.tolist()[:9]}",
            hint="the scores of each frame, two frames or more, at rising times in seconds",
        )
    if not moments or any(stop <= start for start, stop in moments):
        raise DataError(
            f"{record.id}: moments {list(moments)}", hint="each (start, stop) with start < stop, in seconds"
        )
    edges = np.append(seconds, 2 * seconds[-1] - seconds[-2])
    inside, until = np.zeros(len(each)), -np.inf
    length = 0.0
    for start, stop in sorted(moments):
        start = max(start, until)
        inside += np.clip(np.minimum(stop, edges[1:]) - np.maximum(start, edges[:-1]), 0.0, None)
        length += max(0.0, stop - start)
        until = max(until, stop)
    covered = np.repeat(inside / np.diff(edges), [len(row) for row in each])
    return Placed(np.concatenate(each), covered, min(1.0, float(inside.sum()) / length), 0.0)


def seen_block(rows: Sequence[tuple[Record, Placed | None]], nowhere: Sequence[str] = ()) -> Block:
    """The share of the true regions that the model saw, and how many answers could not be scored and why.

    Args:
        rows: every record, None where it has no relevance. nowhere: ids whose relevance has no known location.
    """
    table = []
    for record, placed in rows:
        row = {"lost": float(placed is None and record.id not in nowhere), "nowhere": float(record.id in nowhere)}
        if placed is not None:
            row |= {"placed": 1.0, "seen": placed.seen, "never": float(placed.seen == 0), "padding": placed.padding}
        table.append((record.id, row))
    measures = [
        count("answers without relevance", "lost"),
        count("relevance without a known place", "nowhere"),
        count("regions the model never saw", "never", higher_is_better=None),
        share("region seen", "seen", "placed", higher_is_better=None),
        share("relevance on padding", "padding", "placed", higher_is_better=None),
    ]
    return block("", table, measures, [str(r.meta.get("cluster", r.id)) for r, _ in rows],
                 ("lost", "nowhere", "never", "seen", "placed", "padding"))  # fmt: skip
