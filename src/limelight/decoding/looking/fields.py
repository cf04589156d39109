"""Fields: scores of positions, laid out on the original picture, sound or film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from limelight.errors import UnsupportedError
from limelight.types import Box, Prompt, Span

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One grid ``scores [rows, columns]`` over ``box`` (left, top, right, bottom), each cell spread evenly."""

    scores: Floats
    box: Box

    @cached_property
    def table(self) -> Floats:
        """Summed-area table ``[rows + 1, columns + 1]``."""
        return np.pad(self.scores.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def mass(self, boxes: Floats) -> Floats:
        """Sum of the scores inside each of ``boxes [n, 4]``; cells that are cut count by their share."""
        left, top, right, bottom = self.box
        rows, columns = self.scores.shape
        x = np.clip((boxes[:, 0::2] - left) / max(right - left, 1e-9), 0, 1) * columns  # [n, 2]
        y = np.clip((boxes[:, 1::2] - top) / max(bottom - top, 1e-9), 0, 1) * rows
        corners = self._at(y[:, 1], x[:, 1]) - self._at(y[:, 0], x[:, 1]) - self._at(y[:, 1], x[:, 0])
        return corners + self._at(y[:, 0], x[:, 0])

    def _at(self, y: Floats, x: Floats) -> Floats:
        """The table between its entries: bilinear, which is exact for even cells."""
        table = self.table
        row = np.minimum(y.astype(int), table.shape[0] - 2)
        column = np.minimum(x.astype(int), table.shape[1] - 2)
        v, u = y - row, x - column
        upper = table[row, column] * (1 - u) + table[row, column + 1] * u
        lower = table[row + 1, column] * (1 - u) + table[row + 1, column + 1] * u
        return np.asarray(upper * (1 - v) + lower * v)


@dataclass(frozen=True)
class Field:
    """The scores on one medium.

    Attributes:
        kind: image, audio or video; source: its index among the prompt's media of that kind.
        size: (width, height) in pixels; of a sound (seconds, 1).
        parts: grids on a picture (or on all frames of a film); of a sound one row over (0, 0, seconds, 1).
        shown: the part of the medium that the model is given.
        frames: of a film, the mass of each frame ``[frames]``.
    """

    kind: str
    source: int
    size: tuple[float, float]
    parts: tuple[Part, ...]
    shown: Box
    frames: tuple[float, ...] = ()

    def mass(self, boxes: Sequence[Box] | Floats) -> Floats:
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        return np.asarray(np.sum([p.mass(found) for p in self.parts], axis=0))

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
            ((b[2] - b[0]) / p.scores.shape[1], (b[3] - b[1]) / p.scores.shape[0]) for p in self.parts for b in [p.box]
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
        if (film := _film(scores, spans, source, len(clip))) is not None:
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


def _film(scores: Floats, spans: Sequence[Span], source: int, count: int) -> Field | None:
    found = [(s, s.region) for s in spans if s.region is not None and s.region.frames and s.region.source == source]
    if not found or any(s.grid is None for s, _ in found):
        return None
    mass, shared = np.zeros(count), dict[Box, Floats]()
    for span, region in found:
        steps = _grid(scores, span).reshape(-1, *span.cells)
        for step, shown in zip(steps, region.frames, strict=False):
            for frame in shown:
                mass[min(frame, count - 1)] += float(step.sum()) / len(shown)
            shared[region.box] = shared.get(region.box, 0) + step
    size = found[0][1].size
    boxes = np.array(list(shared))
    shown_box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    parts = tuple(Part(np.asarray(v), b) for b, v in shared.items())
    return Field("video", source, (float(size[0]), float(size[1])), parts, shown_box, tuple(mass.tolist()))
