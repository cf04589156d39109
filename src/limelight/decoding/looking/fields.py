"""Fields: scores of positions, laid out on the original picture, sound or film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from limelight.errors import UnsupportedError
from limelight.types import Box, Clip, Prompt, Span

Floats = npt.NDArray[np.float64]
Times = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """One grid ``scores [rows, columns]`` over ``box`` (left, top, right, bottom), each cell spread evenly.

    Of a film ``scores [frames, rows, columns]``, with ``edges [frames + 1]``: frame i stands for the seconds between edges i
    and i + 1.
    """

    scores: Floats
    box: Box
    edges: tuple[float, ...] = (0.0, 1.0)

    @cached_property
    def table(self) -> Floats:
        """Summed table ``[frames + 1, rows + 1, columns + 1]``; a picture has one frame."""
        each = self.scores.reshape(-1, *self.scores.shape[-2:])
        return np.pad(each.cumsum(0).cumsum(1).cumsum(2), ((1, 0), (1, 0), (1, 0)))

    def mass(self, boxes: Floats, times: Floats | None = None) -> Floats:
        """Sum of the scores inside each of ``boxes [n, 4]``, of a film also within ``times [n, 2]`` (None: at any time); cells
        that are cut count by their share."""
        left, top, right, bottom = self.box
        frames, rows, columns = (n - 1 for n in self.table.shape)
        x = np.clip((boxes[:, 0::2] - left) / max(right - left, 1e-9), 0, 1) * columns  # [n, 2]
        y = np.clip((boxes[:, 1::2] - top) / max(bottom - top, 1e-9), 0, 1) * rows
        if times is None:
            until = np.full(len(boxes), float(frames))
            return self._below(until, y, x)
        t = np.interp(times, self.edges, np.arange(frames + 1.0))
        return self._below(t[:, 1], y, x) - self._below(t[:, 0], y, x)

    def _below(self, t: Floats, y: Floats, x: Floats) -> Floats:
        """The mass before time ``t [n]`` (in frames) between ``y [n, 2]`` and ``x [n, 2]`` (in cells)."""
        corners = self._at(t, y[:, 1], x[:, 1]) - self._at(t, y[:, 0], x[:, 1]) - self._at(t, y[:, 1], x[:, 0])
        return corners + self._at(t, y[:, 0], x[:, 0])

    def _at(self, t: Floats, y: Floats, x: Floats) -> Floats:
        """The table between its entries: trilinear, which is exact for even cells."""
        table = self.table
        frame, row, column = (np.minimum(z.astype(int), n - 2) for z, n in zip((t, y, x), table.shape, strict=True))
        w, v, u = t - frame, y - row, x - column

        def plane(at: npt.NDArray[np.int_]) -> Floats:
            upper = table[at, row, column] * (1 - u) + table[at, row, column + 1] * u
            lower = table[at, row + 1, column] * (1 - u) + table[at, row + 1, column + 1] * u
            return np.asarray(upper * (1 - v) + lower * v)

        return plane(frame) * (1 - w) + plane(frame + 1) * w if w.any() else plane(frame)


@dataclass(frozen=True)
class Field:
    """The scores on one medium.

    Attributes:
        kind: image, audio or video; source: its index among the prompt's media of that kind.
        size: (width, height) in pixels; of a sound (seconds, 1).
        parts: grids on a picture (or on the frames of a film); of a sound one row over (0, 0, seconds, 1).
        shown: the part of the medium that the model is given.
        edges: of a film, the seconds between which each frame that the model is given is the nearest one, ``[frames + 1]``.
        rate: of a film whose other frames can be read again, frames per second; else 0.
    """

    kind: str
    source: int
    size: tuple[float, float]
    parts: tuple[Part, ...]
    shown: Box
    edges: tuple[float, ...] = ()
    rate: float = 0.0

    def mass(self, boxes: Sequence[Box] | Floats, times: Floats | None = None) -> Floats:
        """Sum of the scores in each of ``boxes [n, 4]``, of a film also within ``times [n, 2]`` seconds (None: at any time)."""
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return np.asarray(np.sum([p.mass(found, times) for p in self.parts], axis=0))

    @property
    def frames(self) -> tuple[float, ...]:
        """Of a film, the mass of each frame that the model is given."""
        count = len(self.edges) - 1
        return tuple(np.sum([p.scores.sum((1, 2)) for p in self.parts], axis=0).tolist()) if count > 0 else ()

    @property
    def span(self) -> Times | None:
        """Of a film, when it begins and ends, in seconds."""
        return (self.edges[0], self.edges[-1]) if self.edges else None

    def length(self, times: Floats) -> Floats:
        """How many of the frames that the model is given ``times [n, 2]`` span, in parts of a frame; 1 for what has no frames."""
        if not self.edges:
            return np.ones(len(times))
        at = np.interp(times, self.edges, np.arange(float(len(self.edges))))
        return np.asarray(at[:, 1] - at[:, 0])

    def finer(self, interval: Times) -> float:
        """How many times as many frames of a film can be had between two times as the model is given of all of it."""
        return self.rate * (interval[1] - interval[0]) / max(1, len(self.edges) - 1)

    def later(self, seconds: float, total: float) -> Field:
        """The same of a sound that begins ``seconds`` into one of ``total`` seconds."""

        def moved(box: Box) -> Box:
            return box[0] + seconds, box[1], box[2] + seconds, box[3]

        parts = tuple(Part(p.scores, moved(p.box)) for p in self.parts)
        return replace(self, size=(total, 1.0), parts=parts, shown=moved(self.shown))

    @property
    def total(self) -> float:
        return float(sum(p.scores.sum() for p in self.parts))

    @property
    def cell(self) -> tuple[float, float]:
        """Width and height of the smallest cell."""
        each = [
            ((b[2] - b[0]) / p.scores.shape[-1], (b[3] - b[1]) / p.scores.shape[-2])
            for p in self.parts
            for b in [p.box]
        ]
        return min(x for x, _ in each), min(y for _, y in each)

    @property
    def whole(self) -> bool:
        """Whether the model sees all of the picture, without padding."""
        (width, height), box = self.size, self.shown
        return box == (0, 0, width, height)


def fields(scores: Floats, spans: Sequence[Span], prompt: Prompt) -> list[Field]:
    """Return the fields of one row's scores ``[T]``, pictures first, then sounds, then films.

    Raises:
        UnsupportedError: the places of none of the media are known.
    """
    out: list[Field] = []
    for source in range(len(prompt.media.get("image", ()))):
        found = [(s, s.region) for s in spans if s.modality == "image" and s.region is not None and s.grid is not None]
        own = [(s, r) for s, r in found if not r.frames and r.source == source and len(s.grid or ()) == 2]
        parts = tuple(Part(_grid(scores, s), r.box) for s, r in own if r.box[0] < r.box[2] and r.box[1] < r.box[3])
        if parts:
            boxes = np.array([p.box for p in parts])
            shown = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
            out.append(Field("image", source, tuple(map(float, own[0][1].size)), parts, shown))  # type: ignore[arg-type]
    for source, (samples, rate) in enumerate(prompt.media.get("audio", ())):
        if (sound := _sound(scores, spans, source, len(samples) / rate)) is not None:
            out.append(sound)
    for source, clip in enumerate(prompt.media.get("video", ())):
        if (film := _film(scores, spans, source, clip)) is not None:
            out.append(film)
    if not out:
        raise UnsupportedError(
            "look-again: which parts of the media the prompt's positions show is unknown (a resampler, or a prompt that "
            "was prepared without regions)",
            hint="adapter.prepare(messages, media) finds the regions; models with a resampler have none",
        )
    return out


def _grid(scores: Floats, span: Span) -> Floats:
    grid = span.grid or (1, len(span))
    return scores[span.start : span.stop].reshape(grid)[..., : grid[-1] - span.margin]


def _sound(scores: Floats, spans: Sequence[Span], source: int, total: float) -> Field | None:
    parts, ends = [], []
    for s in spans:
        if s.modality != "audio" or s.interval is None or s.seconds is None or s.interval.source != source:
            continue
        starts = s.interval.start + np.arange(len(s)) * s.seconds
        real = starts < s.interval.duration - 1e-6
        if real.any():
            ends.append(min(float(starts[real][-1]) + s.seconds, s.interval.duration))
            box = (float(starts[0]), 0.0, float(starts[real][-1]) + s.seconds, 1.0)
            parts.append(Part(scores[s.start : s.stop][real][None], box))
    if not parts:
        return None
    shown = (min(p.box[0] for p in parts), 0.0, max(ends), 1.0)
    return Field("audio", source, (max(total, shown[2]), 1.0), tuple(parts), shown)


def _film(scores: Floats, spans: Sequence[Span], source: int, clip: Clip) -> Field | None:
    found = [(s, s.region) for s in spans if s.region is not None and s.region.frames and s.region.source == source]
    if not found or any(s.grid is None for s, _ in found):
        return None
    edges, grids = edges_of(clip), dict[Box, Floats]()
    for span, region in found:
        steps = _grid(scores, span).reshape(-1, *span.cells)
        for step, shown in zip(steps, region.frames, strict=False):
            grid = grids.setdefault(region.box, np.zeros((len(clip), *step.shape)))
            for frame in shown:
                grid[min(frame, len(clip) - 1)] += step / len(shown)
    size = found[0][1].size
    boxes = np.array(list(grids))
    shown_box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    parts = tuple(Part(v, b, edges) for b, v in grids.items())
    return Field("video", source, (float(size[0]), float(size[1])), parts, shown_box, edges, rate_of(clip))


def edges_of(clip: Clip) -> tuple[float, ...]:
    """The seconds between which each frame of a clip is the nearest one, ``[frames + 1]``: from its first frame to its end.

    A clip of a part of a file ends where its last frame is no longer the nearest one, however long the file goes on.
    """
    times = np.asarray(clip.seconds)
    middles, last, end = (times[1:] + times[:-1]) / 2, float(times[-1]), clip.length
    if clip.source is not None and clip.fps and last + 1.5 / clip.fps < end:
        end = min(end, last + max(0.5 / clip.fps, last - float(middles[-1]) if len(middles) else 0.0))
    return (float(times[0]), *middles.tolist(), max(last, end))


def rate_of(clip: Clip) -> float:
    """Frames per second of a clip whose other frames can be read again; else 0."""
    return float(clip.fps) if readable(clip) and clip.fps else 0.0


def readable(clip: Clip) -> bool:
    """Whether the film that a clip was read from is still there."""
    source = (
        clip.source.get("path") if isinstance(clip.source, Mapping) and not clip.source.get("bytes") else clip.source
    )
    return source is not None and (not isinstance(source, (str, Path)) or Path(source).is_file())
