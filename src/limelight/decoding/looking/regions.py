"""Region proposal: windows of several sizes and shapes with the most of a field, clipped, and padded by context.

``score(window) = mass / area ** tightness``: 0 prefers large windows, 1 the densest ones. Each further window counts only the
mass that those before it leave. A window of a film has a length as well (volume in place of area): an eighth, a quarter or half
of the film, and either all of each frame or a part of it in full detail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limelight.decoding.looking.fields import Field, Floats, Times
from limelight.types import Box

STEPS = 4  # windows start every quarter of their length, or every cell where that is finer
MOST = 24  # starts per axis


@dataclass(frozen=True)
class Proposal:
    """A part of a medium: a box in pixels (of a picture, or of the frames of a film between the seconds of ``interval``), or the
    seconds of a sound as (start, 0, stop, 1)."""

    kind: str
    source: int
    box: Box
    score: float = 0.0
    interval: Times | None = None


@dataclass(frozen=True)
class Windows:
    """Which windows are proposed.

    Attributes:
        sizes: sides, in multiples of the side of what the model sees of the picture (1: it sees the window in full detail).
        shapes: width over height.
        seconds: lengths of windows on a sound.
        context: what is added on every side, as a part of the window's side.
        tightness: the exponent of the area.
        pick: ``mass``: as above; ``sharpest``: one window, of the size whose best window stands out most from those one cell
            beside it, per cell (``bbox_from_att_image_adaptive`` of the released code of "MLLMs know where to look").
    """

    sizes: tuple[float, ...] = (1.3,)
    shapes: tuple[float, ...] = (1.0,)
    seconds: tuple[float, ...] = (1.0, 2.0)
    context: float = 0.0
    tightness: float = 0.5
    pick: str = "mass"


def propose(fields: Sequence[Field], sides: Sequence[float], windows: Windows, count: int) -> list[Proposal]:
    """Return up to ``count`` windows, best first; fewer where no window differs enough from those before.

    Args:
        sides: for each field, the side of what the model sees, in pixels (of a sound: unused).
    """
    if windows.pick == "sharpest":
        return _sharpest(fields, sides, windows)
    found = [_candidates(field, side, windows) for field, side in zip(fields, sides, strict=True)]
    chosen: list[Proposal] = []
    taken: list[tuple[int, Floats, Floats]] = []
    while len(chosen) < count:
        best: tuple[float, int, int] | None = None
        for i, (field, (boxes, times)) in enumerate(zip(fields, found, strict=True)):
            if not len(boxes):
                continue
            scores = _scores(field, boxes, times, [t[1:] for t in taken if t[0] == i], windows.tightness)
            at = int(scores.argmax())
            if math.isfinite(scores[at]) and (best is None or scores[at] > best[0]):
                best = float(scores[at]), i, at
        if best is None:
            break
        value, i, at = best
        field, box, time = fields[i], found[i][0][at], found[i][1][at]
        taken.append((i, box, time))
        when = None if field.span is None else _within(time, windows.context, field.span)
        chosen.append(Proposal(field.kind, field.source, padded(field, box, windows.context), value, when))
    return chosen


def _within(time: Floats, context: float, span: Times) -> Times:
    more = context * float(time[1] - time[0])
    return max(span[0], float(time[0]) - more), min(span[1], float(time[1]) + more)


def runs(edges: Sequence[float]) -> list[Times]:
    """An eighth, a quarter and half of a film's frames, as seconds: at every frame, or at every quarter of a long run."""
    count, out = len(edges) - 1, list[Times]()
    for length in dict.fromkeys(max(1, count // part) for part in (8, 4, 2)):
        starts = dict.fromkeys(round(x) for x in _starts(length, count, 1.0))
        out += [(edges[first], edges[first + length]) for first in starts]
    return out


def _sharpest(fields: Sequence[Field], sides: Sequence[float], windows: Windows) -> list[Proposal]:
    best: Proposal | None = None
    for field, side in zip(fields, sides, strict=True):
        if field.kind == "audio":
            continue
        wide, high = field.cell
        for size in windows.sizes:
            length = max(wide, side * size // wide * wide), max(high, side * size // high * high)
            length = min(length[0], field.size[0]), min(length[1], field.size[1])  # of a long picture, one side
            if length[0] >= field.size[0] and length[1] >= field.size[1]:
                continue
            corners = [(x, y) for y in np.arange(0, field.size[1] - length[1] + 1e-6, high)
                       for x in np.arange(0, field.size[0] - length[0] + 1e-6, wide)]  # fmt: skip
            boxes = np.array([[x, y, x + length[0], y + length[1]] for x, y in corners])
            mass = field.mass(boxes)
            at = int(mass.argmax())
            beside = np.abs(boxes[:, :2] - boxes[at, :2]) / (wide, high)
            near = np.isclose(beside.sum(1), 1)
            score = float(mass[at] - mass[near].mean()) / (length[0] * length[1] / (wide * high)) if near.any() else 0.0
            if best is None or score > best.score:
                best = Proposal(field.kind, field.source, padded(field, boxes[at], windows.context), score)
    return [] if best is None else [best]


def _scores(
    field: Field, boxes: Floats, times: Floats, taken: Sequence[tuple[Floats, Floats]], tightness: float
) -> Floats:
    """The scores ``[n]`` of windows: ``boxes [n, 4]`` within ``times [n, 2]``."""
    mass, volume = field.mass(boxes, times), _volume(boxes, field.length(times))
    excluded = np.zeros(len(boxes), dtype=bool)
    for box, time in taken:
        common = np.concatenate([np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])], axis=1)
        common[:, 2:] = np.maximum(common[:, 2:], common[:, :2])
        when = np.stack([np.maximum(times[:, 0], time[0]), np.minimum(times[:, 1], time[1])], axis=1)
        when[:, 1] = np.maximum(when[:, 1], when[:, 0])
        mass = mass - field.mass(common, when)
        least = np.minimum(volume, _volume(box[None], field.length(time[None])))
        excluded |= _volume(common, field.length(when)) > 0.5 * least
    whole = field.size[0] * field.size[1] * max(1, len(field.edges) - 1)
    scores = mass / np.maximum(volume / whole, 1e-9) ** tightness
    return np.where(excluded, -np.inf, scores)


def _volume(boxes: Floats, lengths: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * lengths


def _candidates(field: Field, side: float, windows: Windows) -> tuple[Floats, Floats]:
    """The windows of a field: boxes ``[n, 4]`` and times ``[n, 2]`` (0 to 1 of what has no frames)."""
    boxes = _boxes(field, side, windows)
    if field.span is None:
        return np.array(boxes).reshape(-1, 4), np.tile([0.0, 1.0], (len(boxes), 1))
    whole = np.array([0.0, 0.0, *field.size])
    parts = [b for b in boxes if not np.allclose(b, whole)]
    some = [t for t in runs(field.edges) if t != field.span]
    pairs = [*((b, t) for t in some for b in [*parts, whole]), *((b, field.span) for b in parts)]
    return np.array([b for b, _ in pairs]).reshape(-1, 4), np.array([t for _, t in pairs]).reshape(-1, 2)


def _boxes(field: Field, side: float, windows: Windows) -> list[Floats]:
    if field.kind == "audio":
        begin, _, end, _ = field.shown
        lengths = dict.fromkeys(min(s, end - begin) for s in windows.seconds)
        starts = [(n, begin + at) for n in lengths for at in _starts(n, end - begin, field.cell[0])]
        return [np.array([at, 0.0, at + n, 1.0]) for n, at in starts]
    aspect, side = aspect_of(field), side or max(field.size)  # where it is unknown: the whole picture
    shapes = [
        (side * size * math.sqrt(shape * aspect), side * size / math.sqrt(shape * aspect))
        for size in windows.sizes
        for shape in windows.shapes
    ]
    out: list[Floats] = []
    for width, height in dict.fromkeys(shapes):
        width, height = min(width, field.size[0]), min(height, field.size[1])
        for left in _starts(width, field.size[0], field.cell[0]):
            out += [np.array([left, top, left + width, top + height])
                    for top in _starts(height, field.size[1], field.cell[1])]  # fmt: skip
    return out


def _starts(length: float, whole: float, cell: float) -> list[float]:
    room = whole - length
    if room <= 1e-9:
        return [0.0]
    count = min(MOST, max(2, math.ceil(room / min(length / STEPS, cell)) + 1))
    return [float(x) for x in np.linspace(0, room, count)]


def aspect_of(field: Field) -> float:
    """Width over height of a crop that the model sees undistorted and to its edges."""
    if field.whole:
        return 1.0
    left, top, right, bottom = field.shown
    return (right - left) / (bottom - top)


def padded(field: Field, box: Floats | Box, context: float) -> Box:
    """Return the box with context on every side, moved inside the medium, or clipped where it is larger."""
    left, top, right, bottom = (float(x) for x in box)
    down = 0.0 if field.kind == "audio" else context * (bottom - top)
    wide = context * (right - left)
    return inside((left - wide, top - down, right + wide, bottom + down), field.size)


def inside(box: Box, size: tuple[float, float]) -> Box:
    """Move a box inside ``(0, 0, *size)``; it is clipped where it is larger."""
    out = []
    for start, stop, most in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        length = min(stop - start, most)
        begin = min(max(start, 0.0), most - length)
        out.append((begin, begin + length))
    return out[0][0], out[1][0], out[0][1], out[1][1]


def fitted(box: Box, size: tuple[float, float], aspect: float) -> Box:
    """Grow a box to ``aspect`` (width over height) and move it inside the picture."""
    width, height = box[2] - box[0], box[3] - box[1]
    wide, high = max(width, height * aspect), max(height, width / aspect)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return inside((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), size)


def at_least(box: Box, side: float, size: tuple[float, float]) -> Box:
    """Grow a box around its middle so that its area is at least ``side`` squared, in its own shape; inside the picture."""
    wide, high = box[2] - box[0], box[3] - box[1]
    factor = side / math.sqrt(max(wide * high, 1e-9))
    if factor <= 1:
        return box
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    wide, high = wide * factor, high * factor
    return inside((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), size)


def quarters(box: Box, overlap: float) -> list[Box]:
    """The four quarters of a box, each longer by ``overlap`` of its side towards the middle."""
    left, top, right, bottom = box
    wide, high = (right - left) / 2 * (1 + overlap), (bottom - top) / 2 * (1 + overlap)
    return [
        (left, top, left + wide, top + high),
        (right - wide, top, right, top + high),
        (left, bottom - high, left + wide, bottom),
        (right - wide, bottom - high, right, bottom),
    ]
