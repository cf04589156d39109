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
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.report.media import Media
from limelight.report.overlay import overlay
from limelight.report.waveform import waveform
from limelight.report.words import Word, rather_than, word_relevance, word_shares, words
from limelight.types import Generation, Prompt, Region, Relevance, Step

VISION = Path(__file__).parent / "vision"
EXAMPLES = VISION / "examples"
SETTINGS = VISION / "settings.json"
AUDIO = Path(__file__).parent / "audio"
FALLBACK: dict[str, dict[str, Any]] = {"lime": {"lr": 1e-2}}
DECISION = f"{YES} rather than {NO}"
Cells = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A curated question: its image or recording, the user turn and its parts, and the true answer.

    ``objects``: pixel boxes of the objects in the image, or (onset, offset) in seconds of the sounds in the recording.
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
    kind: Literal["image", "audio"] = "image"

    @property
    def noun(self) -> str:
        return {"image": "image", "audio": "recording"}[self.kind]

    @property
    def area(self) -> float | None:
        """Share of the image or recording covered by the object in question; None where it is absent."""
        if self.object not in self.objects:
            return None
        if self.kind == "audio":
            onset, offset = self.objects[self.object]
            return (offset - onset) / (read_audio(str(self.file), RATE).size / RATE)
        left, top, right, bottom = self.objects[self.object]
        width, height = read_image(str(self.file)).size
        return (right - left) * (bottom - top) / (width * height)


@dataclass(frozen=True)
class Outcome:
    """One strategy's answer to one example; ``decisive``: its first word, yes or no."""

    example: Example
    generation: Generation
    decisive: Word | None
    right: bool
    share: float
    overlay: Path

    @property
    def relevance(self) -> Relevance | None:
        return word_relevance(self.generation, self.decisive) if self.decisive is not None else None


@dataclass(frozen=True)
class Decision:
    """Attribution of the unmodified model's decision: relevance of the difference between the logits of yes and no.

    Evidence that supports both answers equally cancels out. ``inside``: the share of the image's (recording's)
    ``sum |R|`` inside the box (interval) of the object in question; None where it is absent.
    """

    example: Example
    relevance: Relevance
    generation: Generation
    inside: float | None
    overlay: Path


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
        kind: Literal["image", "audio"] = "audio" if "audio" in r else "image"
        rows.append(Example(**{k: v for k, v in r.items() if k in names}, file=folder / r[kind], kind=kind))
    if not rows:
        raise DataError(
            f"{listing.name} lists no examples", hint="complete the recipe: python -m recipes.demo_vision.train"
        )
    return tuple(rows), str(found.get("rule", ""))


def chosen_settings(path: Path = SETTINGS) -> tuple[dict[str, dict[str, Any]], str]:
    """Read the miniature's strategy settings, chosen on its dev split, and a note on their origin."""
    if not path.is_file():
        return FALLBACK, "settings.json not found: LIME runs with lr 1e-2, which was not chosen on the dev split"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found, "strategy settings: chosen on the dev split (settings.json)"


def spread(rows: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """Return the first ``limit`` examples, taken from each kind in turn."""
    if limit is None or limit >= len(rows):
        return tuple(rows)
    seen: dict[str, int] = {}
    turn = []
    for row in rows:
        turn.append((seen.setdefault(row.cell, 0), row))
        seen[row.cell] += 1
    kept = {id(row) for _, row in sorted(turn, key=lambda pair: pair[0])[:limit]}
    return tuple(row for row in rows if id(row) in kept)


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


def coverage(grid: tuple[int, int], box: Sequence[float], region: Region) -> Cells:
    """Share of the image region shown by each cell ``[rows, columns]`` that lies in the box."""

    def along(cells: int, start: float, stop: float, length: int, low: float, high: float) -> Cells:
        edges = np.clip(np.linspace(start, stop, cells + 1), 0, length)
        covered: Cells = np.maximum(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0)
        return covered / np.maximum(np.diff(edges), 1e-9)

    left, top, right, bottom = region.box
    down = along(grid[0], top, bottom, region.size[1], box[1], box[3])
    return down[:, None] * along(grid[1], left, right, region.size[0], box[0], box[2])[None, :]


def outcome_of(adapter: Adapter, example: Example, answer: Generation, folder: Path) -> Outcome:
    """Score an answer by its first word, and draw that word's relevance into ``folder``."""
    found = words(answer)
    first = found[0] if found else None
    relevance = word_relevance(answer, first) if first is not None else None
    path = folder / f"{example.file.stem}-{answer.strategy}.png"
    if relevance is not None and first is not None:
        draw(adapter, example, relevance, first.text, answer.strategy, path)
    right = first is not None and first.text.casefold() == example.label.casefold()
    share = word_shares(answer, first).get(example.kind, 0.0) if first is not None else 0.0
    return Outcome(example, answer, first, right, share, path)


def decision_of(adapter: Adapter, example: Example, prompt: Prompt, folder: Path) -> Decision:
    """Attribute yes and no of the unmodified model, subtract, and draw the difference into ``folder``."""
    yes, no = (_token(adapter, answer) for answer in (YES, NO))
    found = rather_than(attribute(adapter, prompt.tensors, yes), attribute(adapter, prompt.tensors, no))
    inside = None
    if example.object in example.objects:
        place = example.objects[example.object]
        if example.kind == "audio":
            inside = inside_event(found, *place)
        else:
            inside = inside_box(found, place)
    path = folder / f"{example.file.stem}-decision.png"
    draw(adapter, example, found, DECISION, "", path)
    step = Step(yes, YES, relevance=found, shares=found.shares())
    return Decision(example, found, Generation(YES, (yes,), (step,), prompt, DECISION), inside, path)


def _token(adapter: Adapter, answer: str) -> int:
    """Return the first token of an answer with a leading space if the tokenizer has it, else without."""
    for text in (f" {answer}", answer):
        ids: list[int] = list(adapter.tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) == 1:
            return ids[0]
    return ids[0]


def draw(adapter: Adapter, example: Example, relevance: Relevance, word: str, strategy: str, path: Path) -> None:
    """Draw relevance on the image, or over the time of the recording."""
    media = media_of(adapter, example)
    if example.kind == "audio":
        samples, rate = media.sounds[0]
        waveform(relevance, samples, rate, word=word, strategy=strategy, path=path)
    else:
        overlay(relevance, media, word=word, strategy=strategy, path=path)


def media_of(adapter: Adapter, example: Example) -> Media:
    """Return the example's image with the part of it that the model sees, or its recording."""
    if example.kind == "audio":
        return Media(sounds=[(read_audio(str(example.file), RATE), RATE)])
    image = read_image(str(example.file))
    return Media([image])
