"""Relevance that knows its place: what of the true region the model saw, and which part of it each position shows.

A reply's relevance lies on the part of the original that its processor left: ``image_boxes`` and the sound's ``duration``
(see :class:`limelight.benchmarks.task.Reply`). Only what the model saw is scored: cells that show nothing but padding are
left out, a true region that the processor cut away altogether is no question to the relevance, and both are counted.
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
RASTER = 64  # cells a side on which a region is told to be seen or not, where tiles leave gaps
Coverage = Callable[[tuple[int, int], Box], Array]


@dataclass(frozen=True)
class Placed:
    """Relevance ``[n]`` of the positions that show something of the original, and how much of what each shows lies in the
    true region.

    Attributes:
        seen: how much of the true region the model saw, in [0, 1].
        padding: the part of ``|R|`` on positions that show nothing but padding.
    """

    relevance: Array
    coverage: Array
    seen: float
    padding: float


def image_parts(record: Record) -> list[tuple[Array, Box]] | None:
    """Grids ``[rows, columns]`` and the part of the picture each lies on, in fractions; None without relevance, [] where
    its place is not known.

    Raises:
        DataError: grids and boxes do not pair up.
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
            hint="one box (left, top, right, bottom) in fractions of the picture a grid",
        )
    return [(np.asarray(g, dtype=np.float64), (b[0], b[1], b[2], b[3])) for g, b in zip(grids, boxes, strict=True)]


def _shown(grid: tuple[int, int], over: Box) -> Array:
    """How much of each cell ``[rows, columns]`` of a grid that lies over a part of the picture is on the picture."""
    if over[0] >= over[2] or over[1] >= over[3]:
        return np.zeros(grid)
    return np.clip(box_coverage(grid, [within(WHOLE, over)]), 0, 1)


def within(box: Box, over: Box) -> Box:
    """A box of the picture in fractions of a part of it, cut to that part."""
    wide, high = over[2] - over[0], over[3] - over[1]
    left, right = ((min(max(x, over[0]), over[2]) - over[0]) / wide for x in (box[0], box[2]))
    top, bottom = ((min(max(y, over[1]), over[3]) - over[1]) / high for y in (box[1], box[3]))
    return left, top, right, bottom


def boxes_over(boxes: Sequence[Box]) -> Coverage:
    """The share of each cell inside the union of boxes (in fractions of the picture), for grids over parts of it."""
    box_coverage((1, 1), boxes)  # refuses what is no box

    def coverage(grid: tuple[int, int], over: Box) -> Array:
        cut = [within(b, over) for b in boxes]
        return box_coverage(grid, [b for b in cut if b[0] < b[2] and b[1] < b[3]])

    return coverage


def polygons_over(polygons: Sequence[Sequence[float]]) -> Coverage:
    """The same for polygons (x, y, x, y, ... in fractions of the picture)."""

    def coverage(grid: tuple[int, int], over: Box) -> Array:
        sides = over[2] - over[0], over[3] - over[1]
        moved = [[(v - over[k % 2]) / sides[k % 2] for k, v in enumerate(p)] for p in polygons]
        return polygon_coverage(grid, moved, raster=max(16, 512 // max(grid)))

    return coverage


def place(parts: Sequence[tuple[Array, Box]], coverage: Coverage) -> Placed:
    """The relevance of grids over parts of a picture against a region of the picture."""
    relevance, covered = [], []
    lost = whole = 0.0
    for grid, over in parts:
        shape = grid.shape[0], grid.shape[1]
        shown = _shown(shape, over)
        real = shown > 1e-6
        inside = coverage(shape, over) if real.any() else np.zeros(shape)
        relevance.append(grid[real])
        covered.append(np.clip(inside[real] / shown[real], 0, 1))
        whole += float(np.abs(grid).sum())
        lost += float(np.abs(grid[~real]).sum())
    return Placed(
        np.concatenate(relevance),
        np.concatenate(covered),
        _seen(coverage, [within(over, WHOLE) for _, over in parts]),
        lost / whole if whole else 0.0,
    )


def _seen(coverage: Coverage, parts: Sequence[Box]) -> float:
    """How much of the region lies in the union of parts of the picture."""
    boxes = [b for b in parts if b[0] < b[2] and b[1] < b[3]]
    area = float(coverage((1, 1), WHOLE)[0, 0])
    if not boxes or not area:
        return 0.0
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    around = min(lefts), min(tops), max(rights), max(bottoms)
    size = float((around[2] - around[0]) * (around[3] - around[1]))
    if float(box_coverage((1, 1), boxes)[0, 0]) > 0.999 * size:  # the parts fill the box around them
        return min(1.0, float(coverage((1, 1), around)[0, 0]) * size / area)
    if not any(float(coverage((1, 1), b)[0, 0]) for b in boxes):
        return 0.0
    fine = coverage((RASTER, RASTER), WHOLE)
    seen = float((fine * box_coverage((RASTER, RASTER), boxes)).sum())
    return min(1.0, seen / float(np.asarray(fine).sum()))


def place_events(record: Record, events: Sequence[tuple[float, float]]) -> Placed | None:
    """The relevance of a sound's positions against events (onset, offset), in seconds; None without relevance.

    Positions from ``duration`` on are padding. What of the events lies behind the last position was not heard.
    """
    found = record.meta.get("audio_relevance")
    if found is None:
        return None
    scores, seconds = np.asarray(found["scores"], dtype=np.float64), float(found["seconds"])
    edges = np.arange(len(scores) + 1) * seconds
    duration = float(found.get("duration", edges[-1]))
    real = edges[:-1] < duration - 1e-6
    if not real.any():
        raise DataError(f"{record.id}: no position of audio_relevance lies before {duration} s", hint="check seconds")
    shown = np.minimum(edges[1:], duration)[real] - edges[:-1][real]
    inside = event_coverage(len(scores), seconds, events)[real] * seconds
    inside, whole = np.minimum(inside, shown), float(np.abs(scores).sum())
    last = max(off for _, off in events)
    return Placed(
        scores[real],
        inside / shown,
        min(1.0, float(inside.sum()) / (float(event_coverage(1, last, events)[0]) * last)),
        float(np.abs(scores[~real]).sum()) / whole if whole else 0.0,
    )


def seen_block(rows: Sequence[tuple[Record, Placed | None]], nowhere: Sequence[str] = ()) -> Block:
    """How much of the true regions the model saw at all, and what of the answers could not be scored and why.

    Args:
        rows: every record, None where it has no relevance. nowhere: ids whose relevance has no known place.
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
