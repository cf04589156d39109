"""Which positions of the prompt stand for which part of a picture, sound or video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from limelight.report import heat
from limelight.report.media import WHOLE, Box, Media
from limelight.types import Span

_NAMES = {"image": "picture", "audio": "sound", "video": "video"}


@dataclass(frozen=True)
class View:
    """One perceptual span as something to draw.

    Attributes:
        source: which picture, sound or video it belongs to; None when that, or the place in it, is not known.
        kind: what ``source`` counts: ``image``, ``audio`` or ``video``.
        steps: of a video, the frame to draw each of its grids on, and what to call it.
        box: where its grid lies in the picture.
        label: what to call it.
    """

    span: Span
    kind: str
    source: int | None
    label: str
    steps: tuple[tuple[int, str], ...] = ()
    box: Box = WHOLE

    @property
    def grid(self) -> tuple[int, ...]:
        """``(rows, columns)`` or ``(steps, rows, columns)`` without the span's margin; one row where not known."""
        if self.span.grid is None:
            return (1, len(self.span))
        return (*self.span.grid[:-1], self.span.grid[-1] - self.span.margin)

    def cells(self, scores: heat.Floats) -> heat.Floats:
        """Its part of the scores ``[T]``, laid out as ``grid``."""
        part = scores[self.span.start : self.span.stop]
        return part.reshape(self.span.grid or self.grid)[..., : self.grid[-1]]


def views(spans: Sequence[Span], media: Media) -> tuple[View, ...]:
    """Perceptual spans in order, each with what it shows.

    One span a picture is that picture. A video is one span, or one a step in time (which may be spelled as pictures).
    Several spans a picture are tiles: where each lies is not told by the spans, so they are drawn bare, numbered.
    """
    out: list[View] = []
    for kind, number in (("image", len(media.pictures)), ("audio", len(media.sounds)), ("video", len(media.videos))):
        group = [s for s in spans if s.modality == kind]
        if kind == "video" or (kind == "image" and media.videos and not media.pictures):
            film = _film(group, media)
            if film:
                out += film
                continue
        each = len(group) // number if number and len(group) % number == 0 else 0
        for i, span in enumerate(group):
            if each > 1:
                label = f"{_NAMES[kind]} {i // each + 1}, tile {i % each + 1} of {each}"
                out.append(View(span, kind, None, label))
                continue
            placed = each == 1 and (kind == "audio" or (kind == "image" and span.grid is not None))
            box = media.box(i) if placed and kind == "image" else WHOLE
            label = _numbered(kind, i, len(group)).removesuffix(", ")
            out.append(View(span, kind, i if placed else None, label or _NAMES[kind], box=box))
    return tuple(sorted(out, key=lambda v: v.span.start))


def _film(group: Sequence[Span], media: Media) -> list[View]:
    """Spans of one modality as the videos' steps in time; empty where they do not come out even."""
    laid = [s for s in group if s.grid is not None]
    if not laid or not media.videos or any(s.grid is None and len(s) > 1 for s in group):
        return []
    counts = [s.grid[0] if s.grid is not None and len(s.grid) == 3 else 1 for s in laid]
    frames = [len(v) for v in media.videos]
    lengths = _steps(frames, sum(counts)) if laid[0].modality == "video" else frames  # as pictures: one a frame
    if sum(lengths) != sum(counts):
        return []
    places = [(video, step) for video, length in enumerate(lengths) for step in range(length)]
    out, at = [], 0
    for span in group:
        if span.grid is None:  # a newline embedding behind the frames
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
        out.append(View(span, "video", video, label, steps))
    return out


def _steps(frames: Sequence[int], total: int) -> list[int]:
    """How many grids each video has, when there are ``total``: as many frames a grid for all; empty when none fits."""
    if len(frames) == 1:
        return [total]
    for merged in range(1, max(frames) + 1):
        found = [math.ceil(n / merged) for n in frames]
        if sum(found) == total:
            return found
    return []


def frame_of(grid: int, grids: int, frames: int, times: Sequence[float] = ()) -> tuple[int, str]:
    """The middle one of the frames that the ``grid``-th of ``grids`` stands for, and what to call them."""
    first = min(frames - 1, int(grid * frames / grids))
    last = max(first, min(frames, int((grid + 1) * frames / grids)) - 1)
    label = f"frame {first + 1}" if first == last else f"frames {first + 1}–{last + 1}"
    middle = (first + last) // 2
    if len(times) != frames:
        return middle, label
    when = f"{times[first]:.1f}" if first == last else f"{times[first]:.1f}–{times[last]:.1f}"
    return middle, f"{label} · {when} s"


def _numbered(kind: str, index: int, count: int) -> str:
    return f"{_NAMES[kind]} {index + 1}, " if count > 1 else ""
