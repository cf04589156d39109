"""Inputs and results of the demo: curated examples, answers, and the attribution of each decision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from limelight.demo.language import NO, YES
from limelight.demo.synthesis import RATE
from limelight.errors import DataError, SettingError
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.media.video import read_video
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.report.frames import contact_sheet, frame_grids
from limelight.report.media import Media
from limelight.report.overlay import overlay
from limelight.report.waveform import waveform
from limelight.report.words import Word, word_relevance, word_shares, words
from limelight.types import Clip, Generation, Prompt, Region, Relevance

VISION = Path(__file__).parent / "vision"
EXAMPLES = VISION / "examples"
SETTINGS = VISION / "settings.json"
AUDIO = Path(__file__).parent / "audio"
VIDEO = Path(__file__).parent / "video"
HOMES = {"image": VISION, "audio": AUDIO, "video": VIDEO}
MODELS = {"image": "demo-vision", "audio": "demo-audio", "video": "demo-video"}
NOUNS = {"image": "image", "audio": "recording", "video": "film"}
Kind = Literal["image", "audio", "video"]
FALLBACK: dict[str, dict[str, Any]] = {"lime": {"lr": 1e-2}}
Cells = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A curated question: its image, recording or film, the user turn and its parts, and the true answer.

    ``objects``: pixel boxes of the objects in the image, or (onset, offset) in seconds of the sounds in the recording or of the
    objects in the film.
    """

    id: str
    file: Path
    text: str
    label: str
    cell: str = ""
    hint: str = ""
    question: str = ""
    object: str = ""
    objects: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kind: Kind = "image"
    shown: bool = False  # one of the three that the demo shows first

    @property
    def wrong(self) -> str:
        return NO if self.label == YES else YES

    @property
    def noun(self) -> str:
        return NOUNS[self.kind]

    @property
    def area(self) -> float | None:
        """Share of the image, recording or film covered by the object in question; None where it is absent."""
        if self.object not in self.objects:
            return None
        if self.kind == "audio":
            onset, offset = self.objects[self.object]
            return (offset - onset) / (read_audio(str(self.file), RATE).size / RATE)
        if self.kind == "video":
            times = read_video(str(self.file)).seconds
            return sum(shown_at(t, self.objects[self.object]) for t in times) / len(times)
        left, top, right, bottom = self.objects[self.object]
        width, height = read_image(str(self.file)).size
        return (right - left) * (bottom - top) / (width * height)


@dataclass(frozen=True)
class Outcome:
    """One strategy's answer to one example; ``decisive``: its first word, yes or no; ``share``: the part of that word's
    relevance that comes from the image, recording or film."""

    example: Example
    generation: Generation
    decisive: Word | None
    right: bool
    share: float

    @property
    def relevance(self) -> Relevance | None:
        return word_relevance(self.generation, self.decisive) if self.decisive is not None else None


@dataclass(frozen=True)
class Decision:
    """Attribution of the unmodified model's decision: relevance of the correct answer's logit less the other's.

    Evidence that supports both answers equally cancels out. ``inside``: the share of the image's (recording's, film's)
    ``sum |R|`` inside the box (interval, frames) of the object in question; None where it is absent.
    """

    example: Example
    relevance: Relevance
    inside: float | None
    overlay: Path


@dataclass(frozen=True)
class Caption:
    """A request for a description: its image, recording or film, the user turn, and what is there (boxes, or times)."""

    id: str
    file: Path
    text: str
    objects: Mapping[str, Sequence[float]]
    kind: Kind = "image"
    rule: str = ""


def caption_of(folder: Path) -> Caption | None:
    """Return the caption request among the examples of a folder, if there is one."""
    listing = folder / "examples.json"
    found = json.loads(listing.read_text(encoding="utf-8")).get("caption") if listing.is_file() else None
    if found is None:
        return None
    kind = _kind(found)
    return Caption(found["id"], folder / found[kind], found["text"], found["objects"], kind, found.get("rule", ""))


def curated(folder: Path = EXAMPLES) -> tuple[tuple[Example, ...], str]:
    """Read the examples of a folder and the rule by which they were selected.

    Raises:
        DataError: there are no examples.
    """
    listing = folder / "examples.json"
    if not listing.is_file():
        raise DataError(f"no examples at {listing.name}", hint="generate them: python -m recipes.demo_vision.train")
    found = json.loads(listing.read_text(encoding="utf-8"))
    names = Example.__dataclass_fields__
    rows = []
    for r in found["examples"]:
        kind = _kind(r)
        rows.append(Example(**{k: v for k, v in r.items() if k in names}, file=folder / r[kind], kind=kind))
    if not rows:
        raise DataError(
            f"{listing.name} lists no examples", hint="complete the recipe: python -m recipes.demo_vision.train"
        )
    return tuple(rows), str(found.get("rule", ""))


def _kind(row: Mapping[str, Any]) -> Kind:
    return "audio" if "audio" in row else "video" if "video" in row else "image"


def chosen_settings(path: Path = SETTINGS) -> tuple[dict[str, dict[str, Any]], str]:
    """Read the miniature's strategy settings, chosen on its dev split, and a note on their origin."""
    if not path.is_file():
        return FALLBACK, "settings.json not found: LIME runs with lr 1e-2, which was not chosen on the dev split"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found, "strategy settings: chosen on the dev split (settings.json)"


def first(rows: Sequence[Example], limit: int) -> tuple[Example, ...]:
    """Return ``limit`` examples: those marked as shown, then the others, each in their order."""
    return tuple(sorted(rows, key=lambda row: not row.shown)[:limit])


def inside_box(relevance: Relevance, box: Sequence[float]) -> float | None:
    """Share of the first image's ``|R|`` inside a box (left, top, right, bottom; pixels), weighting each cell by the covered
    share of the region that it shows; None where regions are unknown. Padding is excluded."""
    try:
        parts = relevance.on_image()
    except SettingError:
        return None
    inside = total = 0.0
    for scores, region in parts:
        heat = np.abs(np.asarray(scores, dtype=np.float64))
        grid = heat.shape[0], heat.shape[1]
        shown = np.asarray(region.shown(grid))
        heat[shown <= 1e-6] = 0.0
        inside += float((heat * coverage(grid, box, region)).sum())
        total += float(heat.sum())
    return inside / total if total else 0.0


def inside_event(relevance: Relevance, onset: float, offset: float) -> float | None:
    """Share of the first recording's ``|R|`` between two times (seconds), weighting each position by its covered time; None
    where times are unknown."""
    try:
        scores, times = relevance.on_audio()
    except SettingError:
        return None
    heat, (start, stop) = np.abs(np.asarray(scores, dtype=np.float64)), np.asarray(times, dtype=np.float64).T
    covered = np.clip(np.minimum(stop, offset) - np.maximum(start, onset), 0.0, None) / (stop - start)
    total = float(heat.sum())
    return float((heat * covered).sum()) / total if total else 0.0


def shown_at(time: float, interval: Sequence[float]) -> bool:
    """Whether something that is there from ``interval[0]`` until before ``interval[1]`` is there at a time (seconds)."""
    return interval[0] - 1e-6 <= time < interval[1] - 1e-6


def inside_frames(relevance: Relevance, clip: Clip, onset: float, offset: float) -> float | None:
    """Share of the first film's ``|R|`` in the frames from one time until before another (seconds); None where the frames of
    positions are unknown."""
    try:
        grids = frame_grids(relevance, clip)
    except SettingError:
        return None
    sums = [(clip.seconds[frame], float(np.abs(scores).sum())) for frame, _, scores in grids]
    total = sum(x for _, x in sums)
    return sum(x for t, x in sums if shown_at(t, (onset, offset))) / total if total else 0.0


def coverage(grid: tuple[int, int], box: Sequence[float], region: Region) -> Cells:
    """Share of the image region shown by each cell ``[rows, columns]`` that lies in the box."""

    def along(cells: int, start: float, stop: float, length: int, low: float, high: float) -> Cells:
        edges = np.clip(np.linspace(start, stop, cells + 1), 0, length)
        covered: Cells = np.maximum(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0)
        return covered / np.maximum(np.diff(edges), 1e-9)

    left, top, right, bottom = region.box
    down = along(grid[0], top, bottom, region.size[1], box[1], box[3])
    return down[:, None] * along(grid[1], left, right, region.size[0], box[0], box[2])[None, :]


def outcome_of(example: Example, answer: Generation) -> Outcome:
    """Score an answer by its first word."""
    found = words(answer)
    decisive = found[0] if found else None
    right = decisive is not None and decisive.text.casefold() == example.label.casefold()
    share = word_shares(answer, decisive).get(example.kind, 0.0) if decisive is not None else 0.0
    return Outcome(example, answer, decisive, right, share)


def decision_of(adapter: Adapter, example: Example, prompt: Prompt, folder: Path) -> Decision:
    """Attribute the correct answer rather than the other in the unmodified model, and draw it into ``folder``."""
    found = attribute(adapter, prompt, example.label, against=example.wrong)
    inside = None
    if example.object in example.objects:
        place = example.objects[example.object]
        if example.kind == "audio":
            inside = inside_event(found, *place)
        elif example.kind == "video":
            inside = inside_frames(found, read_video(str(example.file)), *place)
        else:
            inside = inside_box(found, place)
    path = folder / f"{example.file.stem}-decision.png"
    draw(adapter, example, found, path)
    return Decision(example, found, inside, path)


def draw(adapter: Adapter, example: Example, relevance: Relevance, path: Path) -> None:
    """Draw relevance on the image, over the time of the recording, or on the frames of the film."""
    media = media_of(example)
    if example.kind == "audio":
        samples, rate = media.sounds[0]
        waveform(relevance, samples, rate, path=path)
    elif example.kind == "video":
        contact_sheet(relevance, media, path=path)
    else:
        overlay(relevance, media, path=path)


def media_of(example: Example | Caption) -> Media:
    """Return the example's image, recording or film."""
    if example.kind == "audio":
        return Media(sounds=[(read_audio(str(example.file), RATE), RATE)])
    if example.kind == "video":
        return Media(videos=[read_video(str(example.file))])
    return Media([read_image(str(example.file))])
