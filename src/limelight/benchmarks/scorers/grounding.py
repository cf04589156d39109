"""Grounding metrics: spatial and temporal grounding, pointing game, modality reliance, perturbation curves.

    grounding = sum_i c_i a(R_i) / sum_i a(R_i),   c_i in [0, 1]: share of cell i in the true region

with a = |.| (``abs``), max(., 0) (``positive``) or the identity (``signed``; the result may then leave [0, 1]). The paper
reports spatial grounding and modality reliance without defining them; these are the natural definitions, and the sign
is an option because it changes the numbers. Uniform relevance scores the region's share of the image: ``chance``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limelight.benchmarks.scorers.measure import Array, Block, Measure, block, ratio, share
from limelight.errors import DataError, SettingError
from limelight.types import Modality, Record

Sign = Literal["abs", "positive", "signed"]
Box = tuple[float, float, float, float]


def weigh(relevance: ArrayLike, sign: Sign = "abs") -> Array:
    """Apply the sign convention to relevance."""
    r = np.asarray(relevance, dtype=np.float64)
    if not np.isfinite(r).all():
        raise DataError(
            "relevance contains NaN or infinity", hint="the attribution failed on this row; inspect its answer"
        )
    if sign not in get_args(Sign):
        raise SettingError(f"sign must be one of {get_args(Sign)}, got {sign!r}", hint="pass sign='abs'")
    return np.abs(r) if sign == "abs" else np.maximum(r, 0.0) if sign == "positive" else r


def box_coverage(grid: tuple[int, int], boxes: Sequence[Box]) -> Array:
    """Share of each cell ``[rows, columns]`` inside the union of boxes (left, top, right, bottom), in fractions of the
    image; exact."""
    for x0, y0, x1, y1 in boxes:
        if not (0 <= x0 < x1 <= 1 + 1e-6 and 0 <= y0 < y1 <= 1 + 1e-6):
            raise DataError(
                f"box {(x0, y0, x1, y1)} is not left < right, top < bottom in [0, 1]",
                hint="divide pixel coordinates by the image's size",
            )
    rows, columns = grid
    xs = np.unique(np.clip([*np.linspace(0, 1, columns + 1), *(x for b in boxes for x in (b[0], b[2]))], 0, 1))
    ys = np.unique(np.clip([*np.linspace(0, 1, rows + 1), *(y for b in boxes for y in (b[1], b[3]))], 0, 1))
    mx, my = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    inside = np.zeros((len(my), len(mx)), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= ((my > y0) & (my < y1))[:, None] & ((mx > x0) & (mx < x1))[None, :]
    area = inside * np.diff(ys)[:, None] * np.diff(xs)[None, :] * rows * columns
    out = np.zeros(grid)
    np.add.at(
        out,
        (np.minimum((my * rows).astype(int), rows - 1)[:, None], np.minimum((mx * columns).astype(int), columns - 1)),
        area,
    )
    return np.clip(out, 0.0, 1.0)


def mask_coverage(grid: tuple[int, int], mask: ArrayLike) -> Array:
    """Share of each cell ``[rows, columns]`` inside a mask ``[height, width]``, exact where cells cut pixels."""
    m = np.asarray(mask, dtype=np.float64)
    if m.ndim != 2 or not m.size:
        raise DataError(f"expected a mask [height, width], got shape {m.shape}", hint="pass one mask per image")
    for axis, cells in enumerate(grid):
        total = np.insert(np.cumsum(m, axis=axis), 0, 0.0, axis=axis)
        edges = np.linspace(0, m.shape[axis], cells + 1)
        low = np.minimum(edges.astype(int), m.shape[axis] - 1)
        part = (edges - low).reshape([-1 if a == axis else 1 for a in range(2)])
        at = np.take(total, low, axis=axis) * (1 - part) + np.take(total, low + 1, axis=axis) * part
        m = np.diff(at, axis=axis) * cells / m.shape[axis]
    return np.clip(m, 0.0, 1.0)


def polygon_coverage(grid: tuple[int, int], polygons: Sequence[Sequence[float]], *, raster: int = 16) -> Array:
    """Share of each cell ``[rows, columns]`` inside the union of polygons (x, y, x, y, ... in fractions of the image),
    on a raster of ``raster`` x ``raster`` points per cell."""
    from PIL import Image, ImageDraw

    wrong = [p for p in polygons if len(p) < 6 or len(p) % 2]
    if wrong:
        raise DataError(f"polygon {list(wrong[0])} has fewer than three corners", hint="pass x, y, x, y, x, y, ...")
    height, width = grid[0] * raster, grid[1] * raster
    mask = Image.new("1", (width, height))
    draw = ImageDraw.Draw(mask)
    for p in polygons:  # points are pixel centres
        draw.polygon([(x * width - 0.5, y * height - 0.5) for x, y in zip(p[::2], p[1::2], strict=True)], fill=1)
    return mask_coverage(grid, np.asarray(mask, dtype=np.float64))


def event_coverage(n: int, seconds: float, events: Sequence[tuple[float, float]]) -> Array:
    """Share of each of ``n`` frames of ``seconds`` inside the union of events (onset, offset), in seconds."""
    if seconds <= 0 or any(off <= on for on, off in events):
        raise DataError(
            f"expected frames longer than 0 s and onset < offset, got {seconds} s and {list(events)}",
            hint="check the events' columns: onset before offset, both in seconds",
        )
    edges = np.arange(n + 1) * seconds
    inside, until = np.zeros(n), -math.inf
    for on, off in sorted(events):
        on = max(on, until)
        inside += np.clip(np.minimum(off, edges[1:]) - np.maximum(on, edges[:-1]), 0.0, None)
        until = max(until, off)
    return np.clip(inside / seconds, 0.0, 1.0)


def grounding(relevance: ArrayLike, coverage: ArrayLike, sign: Sign = "abs") -> float:
    """Return relevance inside the region over total relevance; NaN when the total is 0."""
    r, c = weigh(relevance, sign), np.asarray(coverage, dtype=np.float64)
    if r.shape != c.shape:
        raise DataError(
            f"shapes of relevance {r.shape} and region {c.shape} differ",
            hint="rasterise the region on the relevance's grid",
        )
    total = float(r.sum())
    return float((r * c).sum()) / total if total else math.nan


def pointing(relevance: ArrayLike, coverage: ArrayLike, sign: Sign = "abs") -> float:
    """Pointing game: 1 if the most relevant cell overlaps the region, else 0; the mean over tied cells."""
    r, c = weigh(relevance, sign), np.asarray(coverage, dtype=np.float64)
    return float((c[r == r.max()] > 0).mean()) if r.size else math.nan


def point_game(relevance: ArrayLike, coverage: ArrayLike, finer: int = 16, sign: Sign = "signed") -> float:
    """EAGLE's point game: 1 if the maximum of the interpolated map lies inside the region, else 0.

    The map is interpolated linearly between the centres of its cells to ``finer`` points a cell in every direction, as
    ``cv2.resize`` does, and so is not the region, which ``coverage`` tells cell by cell: a point counts as inside where more
    than half of its cell is.
    Source: Chen et al., "Where MLLMs Attend and What They Rely On" (2509.22496), ``evals/eval_point_game.py``.
    """
    fine, inside = weigh(relevance, sign), np.asarray(coverage, dtype=np.float64)
    if not fine.size:
        return math.nan
    for axis, cells in enumerate(fine.shape):
        at = np.clip((np.arange(cells * finer) + 0.5) / finer - 0.5, 0, cells - 1)
        low = np.minimum(at.astype(int), max(cells - 2, 0))
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(fine.ndim)])
        high = np.minimum(low + 1, cells - 1)
        fine = np.take(fine, low, axis=axis) * (1 - part) + np.take(fine, high, axis=axis) * part
    for axis in range(inside.ndim):
        inside = np.repeat(inside, finer, axis=axis)
    return float((inside[fine == fine.max()] > 0.5).mean())


def otsu(values: ArrayLike) -> float:
    """The threshold between two classes of values with the largest variance between them (Otsu, 1979), over all splits."""
    v = np.sort(np.asarray(values, dtype=np.float64).ravel())
    n = np.arange(1, len(v))
    total = np.cumsum(v)
    low, high = total[:-1] / n, (total[-1] - total[:-1]) / (len(v) - n)
    between = n * (len(v) - n) * (high - low) ** 2
    at = int(between.argmax()) if len(v) > 1 else 0
    return float((v[at] + v[min(at + 1, len(v) - 1)]) / 2)


def object_iou(relevance: ArrayLike, coverage: ArrayLike, sign: Sign = "positive") -> float:
    """Object IoU: the area shared by the region and the cells above Otsu's threshold, over the area of both.

    Source: Li et al., "Token Activation Map to Visually Explain Multimodal LLMs" (ICCV 2025, 2506.23270).
    Differs from the paper: on the relevance's own grid, by covered area, instead of the map resized to pixels.
    """
    r, c = weigh(relevance, sign), np.asarray(coverage, dtype=np.float64)
    above = r > otsu(r)
    either = float(np.where(above, 1.0, c).sum())
    return float(c[above].sum()) / either if either else math.nan


@dataclass(frozen=True)
class Curve:
    """The model's score as a growing fraction of the cells is kept (insertion) or removed (deletion)."""

    fractions: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def area(self) -> float:
        """Area under the curve (trapezoids), over fractions 0 to 1."""
        return float(np.trapezoid(self.values, self.fractions))


def perturbation(
    relevance: ArrayLike,
    score: Callable[[NDArray[np.bool_]], float],
    mode: Literal["insertion", "deletion"],
    *,
    steps: int = 20,
    sign: Sign = "signed",
) -> Curve:
    """Keep (or remove) cells in order of decreasing relevance and evaluate ``score(kept)`` at each step.

    ``kept`` has the shape of the relevance. Insertion should rise early (large area), deletion fall early (small
    area). Source: Petsiuk et al., "RISE", 2018.
    """
    r = weigh(relevance, sign)
    if steps < 1 or not r.size:
        raise SettingError(f"expected at least one step and one cell, got {steps} and {r.size}", hint="pass steps=20")
    order = np.argsort(-r.ravel(), kind="stable")
    fractions, values = np.linspace(0, 1, min(steps, r.size) + 1), []
    for f in fractions:
        kept = np.full(r.size, mode == "deletion")
        kept[order[: round(f * r.size)]] = mode == "insertion"
        values.append(float(score(kept.reshape(r.shape))))
    return Curve(tuple(fractions.tolist()), tuple(values))


_COLUMNS = ("n", "with_relevance", "grounding", "chance", "pointing", "correct")


def grounding_block(name: str, rows: Sequence[tuple[Record, Array, Array]], sign: Sign) -> Block:
    """Mean grounding, its chance level, and the pointing game, from (record, relevance, coverage)."""
    table = []
    for record, relevance, coverage in rows:
        g, hit = grounding(relevance, coverage, sign), pointing(relevance, coverage, sign)
        row = {"n": 1.0, "chance": float(coverage.mean())}
        if not math.isnan(g):
            row |= {"with_relevance": 1.0, "grounding": g, "pointing": hit, "correct": float(hit >= 0.5)}
        table.append((record.id, row))
    measures = [
        share("grounding", "grounding", "with_relevance"),
        share("chance", "chance", "n", higher_is_better=None),
        Measure("over chance", lambda s: ratio(s["grounding"], s["with_relevance"]) / ratio(s["chance"], s["n"]), ""),
        share("pointing game", "pointing", "with_relevance"),
    ]
    return block(name, table, measures, [str(r.meta.get("cluster", r.id)) for r, _, _ in rows], _COLUMNS)


def reliance(name: str, records: Sequence[Record], modality: Modality) -> list[Block]:
    """Modality reliance: the mean share of relevance on the modality, over the answers that report it in ``shares``.
    No block when none does."""
    shares = [(r.id, r.meta["shares"]) for r in records if modality in (r.meta.get("shares") or {})]
    rows = [(i, {"share": float(s[modality]), "n": 1.0}) for i, s in shares]
    return [block(name, rows, [share(f"{modality} reliance", "share", "n", higher_is_better=None)])] if rows else []


def faithfulness(records: Sequence[Record], name: str = "faithfulness") -> list[Block]:
    """Areas under the insertion and deletion curves that answers report in ``curves``, and insertion minus deletion:
    one block per attribution method, for paired comparisons. No block when no answer has curves."""
    methods = dict.fromkeys(m for r in records for m in r.meta.get("curves") or {})
    return [_curve_block(f"{name}/{m}", [r for r in records if m in (r.meta.get("curves") or {})], m) for m in methods]


def _curve_block(name: str, records: Sequence[Record], method: str) -> Block:
    rows = []
    for r in records:
        row = {"n": 1.0}
        for mode in ("insertion", "deletion"):
            values = tuple(map(float, r.meta["curves"][method][mode]))
            row[mode] = Curve(tuple(np.linspace(0, 1, len(values)).tolist()), values).area
        rows.append((r.id, row | {"gap": row["insertion"] - row["deletion"]}))
    measures = [
        share("insertion", "insertion", "n", unit=""),
        share("deletion", "deletion", "n", unit="", higher_is_better=False),
        share("insertion minus deletion", "gap", "n", unit=""),
    ]
    return block(name, rows, measures, [str(r.meta.get("cluster", r.id)) for r in records])
