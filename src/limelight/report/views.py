"""Mapping of prompt positions to the parts of images, audio and video that they represent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from limelight.report import heat
from limelight.report.media import WHOLE, Media
from limelight.types import Box, Span

_NAMES = {"image": "image", "audio": "audio", "video": "video"}


@dataclass(frozen=True)
class View:
    """One media span, with the information to draw it.

    Attributes:
        source: index of its image, audio or video; None when that, or the location in it, is unknown.
        kind: the type that ``source`` counts: ``image``, ``audio`` or ``video``.
        steps: for a video, the frame to draw each of its grids on, and its label.
        box: location of its grid in the image or frame, in fractions of width and height; outside [0, 1] where the
            processor padded.
        label: its label.
        stage: adjacent tiles of one image share a number, to be drawn together.
    """

    span: Span
    kind: str
    source: int | None
    label: str
    steps: tuple[tuple[int, str], ...] = ()
    box: Box = WHOLE
    stage: int = -1

    @property
    def grid(self) -> tuple[int, ...]:
        """``(rows, columns)`` or ``(steps, rows, columns)`` without the span's margin; a single row where unknown."""
        if self.span.grid is None:
            return (1, len(self.span))
        return (*self.span.grid[:-1], self.span.grid[-1] - self.span.margin)

    def cells(self, scores: heat.Floats) -> heat.Floats:
        """Return its part of the scores ``[T]``, in the shape of ``grid``."""
        part = scores[self.span.start : self.span.stop]
        return part.reshape(self.span.grid or self.grid)[..., : self.grid[-1]]


def views(spans: Sequence[Span], media: Media) -> tuple[View, ...]:
    """Return the media spans in order, each with what it shows.

    A span's region determines what it shows. Without one, a video is one span, or one per time step (which may be encoded
    as images), and an image's positions have no location unless ``media.boxes`` gives it: they are drawn as a separate
    grid, numbered where an image has several.
    """
    out: list[View] = [v for s in spans if (v := _located(s, media)) is not None]
    spans = [s for s in spans if all(v.span is not s for v in out)]
    for kind, number in (("image", len(media.pictures)), ("audio", len(media.sounds)), ("video", len(media.videos))):
        group = [s for s in spans if s.modality == kind]
        if kind == "video" or (kind == "image" and media.videos and not media.pictures):
            steps = _video_steps(group, media)
            if steps:
                out += steps
                continue
        each = len(group) // number if number and len(group) % number == 0 else 0
        for i, span in enumerate(group):
            if each > 1:
                label = f"{_NAMES[kind]} {i // each + 1}, tile {i % each + 1} of {each}"
                out.append(View(span, kind, None, label))
                continue
            placed = each == 1 and (kind == "audio" or (kind == "image" and span.grid is not None and media.boxes))
            box = media.box(i) if placed and kind == "image" else WHOLE
            label = _numbered(kind, i, len(group)).removesuffix(", ")
            out.append(View(span, kind, i if placed else None, label or _NAMES[kind], box=box))
    return _staged(sorted(out, key=lambda v: v.span.start))


def _located(span: Span, media: Media) -> View | None:
    """Return the view of a span with known location, with its image or video if ``media`` contains it."""
    if span.interval is not None and span.interval.source < len(media.sounds):
        source = span.interval.source
        label = _numbered("audio", source, len(media.sounds)).removesuffix(", ") or _NAMES["audio"]
        return View(span, "audio", source, label)
    region = span.region
    if region is None or span.grid is None:
        return None
    if not region.frames:
        if region.source >= len(media.pictures):
            return None
        label = _numbered("image", region.source, len(media.pictures)).removesuffix(", ") or _NAMES["image"]
        return View(span, "image", region.source, label, box=region.fractions)
    if region.source >= len(media.videos) or not all(region.frames):
        return None
    times, prefix = media.times(region.source), _numbered("video", region.source, len(media.videos))
    if max(map(max, region.frames)) >= len(media.frames(region.source)):
        return None
    steps = tuple(named_frames(f[0], f[-1], times) for f in region.frames)
    label = prefix + steps[0][1] if len(steps) == 1 else prefix.removesuffix(", ") or _NAMES["video"]
    return View(span, "video", region.source, label, steps, region.fractions)


def _staged(found: Sequence[View]) -> tuple[View, ...]:
    """Assign stages: non-overlapping views of one image share a stage, as do the windows of one audio clip; the stages of
    one image get distinct labels."""
    boxes: list[tuple[tuple[str, int] | None, list[Box]]] = []
    out: list[View] = []
    for view in found:
        mine = None if view.source is None or view.kind == "video" else (view.kind, view.source)
        free = [
            i for i, (owner, taken) in enumerate(boxes)
            if mine is not None and owner == mine and not any(_overlap(view.box, b) for b in taken)
        ]  # fmt: skip
        stage = free[0] if free else len(boxes)
        if not free:
            boxes.append((mine, []))
        boxes[stage][1].extend([view.box] if view.kind == "image" else [])
        out.append(replace(view, stage=stage))
    for i, view in enumerate(out):
        beside = [v for v in out if v.kind == view.kind == "image" and v.source == view.source and v.source is not None]
        if len({v.stage for v in beside}) > 1:
            tiles = sum(v.stage == view.stage for v in beside)
            detail = f"{tiles} tiles" if tiles > 1 else f"in {view.grid[0]} x {view.grid[1]}"
            out[i] = replace(view, label=f"{view.label}, {detail}")
    return tuple(out)


def stages(found: Sequence[View]) -> tuple[tuple[View, ...], ...]:
    """Group views that are drawn together, in order of first appearance."""
    numbers = dict.fromkeys(v.stage for v in found)
    return tuple(tuple(v for v in found if v.stage == n) for n in numbers)


def _overlap(one: Box, two: Box) -> bool:
    """Whether two boxes overlap by more than the blurred edge of neighbours."""
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    least = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, two))
    return wide > 0 and high > 0 and wide * high > 0.2 * least


def _video_steps(group: Sequence[Span], media: Media) -> list[View]:
    """Interpret spans of one modality as time steps of videos; empty where the numbers do not match."""
    laid = [s for s in group if s.grid is not None]
    if not laid or not media.videos or any(s.grid is None and len(s) > 1 for s in group):
        return []
    counts = [s.grid[0] if s.grid is not None and len(s.grid) == 3 else 1 for s in laid]
    frames = [len(v) for v in media.videos]
    lengths = _steps(frames, sum(counts)) if laid[0].modality == "video" else frames  # as images: one per frame
    if sum(lengths) != sum(counts):
        return []
    places = [(video, step) for video, length in enumerate(lengths) for step in range(length)]
    out, at = [], 0
    for span in group:
        if span.grid is None:  # a newline embedding after the frames
            out.append(View(span, "video", None, "end of the video"))
            continue
        mine = places[at : at + counts[laid.index(span)]]
        at += len(mine)
        video = mine[0][0]
        if mine[-1][0] != video:
            return []
        steps = tuple(frame_of(step, lengths[video], len(media.videos[video]), media.times(video)) for _, step in mine)
        prefix = _numbered("video", video, len(media.videos))
        label = prefix + steps[0][1] if len(steps) == 1 else prefix.removesuffix(", ") or "video"
        box = span.region.fractions if span.region is not None else WHOLE
        out.append(View(span, "video", video, label, steps, box))
    return out


def _steps(frames: Sequence[int], total: int) -> list[int]:
    """Return the number of grids per video for ``total`` grids with equal frames per grid; empty when none fits."""
    if len(frames) == 1:
        return [total]
    for merged in range(1, max(frames) + 1):
        found = [math.ceil(n / merged) for n in frames]
        if sum(found) == total:
            return found
    return []


def frame_of(grid: int, grids: int, frames: int, times: Sequence[float] = ()) -> tuple[int, str]:
    """Return the middle frame of those that the ``grid``-th of ``grids`` represents, and their label."""
    merged = math.ceil(frames / grids)
    if grids * merged > frames and math.ceil(frames / merged) == grids:  # the last grid has fewer frames
        first, last = grid * merged, min(frames, (grid + 1) * merged) - 1
    else:
        first = min(frames - 1, int(grid * frames / grids))
        last = max(first, min(frames, int((grid + 1) * frames / grids)) - 1)
    return named_frames(first, last, times if len(times) == frames else ())


def named_frames(first: int, last: int, times: Sequence[float] = ()) -> tuple[int, str]:
    """Return the middle frame of ``first`` to ``last``, and their label."""
    label = f"frame {first + 1}" if first == last else f"frames {first + 1}–{last + 1}"
    middle = (first + last) // 2
    if not len(times):
        return middle, label
    when = f"{times[first]:.1f}" if first == last else f"{times[first]:.1f}–{times[last]:.1f}"
    return middle, f"{label} · {when} s"


def _numbered(kind: str, index: int, count: int) -> str:
    return f"{_NAMES[kind]} {index + 1}, " if count > 1 else ""
