"""Questions of the look-again table, and what each localiser's views say of them. One run per (cell, localiser) gives every
budget, join and gate: the windows of a smaller budget are the first of a larger one, and a join or a gate changes which of
the views' answers count, not the views."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes.real_vision.questions import Question, large_questions

import limelight
from bench.quality import fingerprint
from bench.quality_data import adapter as vision
from bench.quality_data import answering, cell, padded_left
from bench.quality_smol_data import adapter as smol
from bench.quality_smol_data import yes_no_ids
from limelight.decoding.collate import batch_of
from limelight.demo import canvases, long_films, long_sounds
from limelight.demo.synthesis import RATE
from limelight.types import Prompt, Step

CACHE = Path(".cache/look_again")
BATCH, SCENES = 40, 10  # questions at once; of smol-vision's scenes
PREFIX = "A picture of a"
CANVASES = canvases.CELLS
SOUNDS = long_sounds.CELLS
REAL = ("scenes/3",)  # smol-vision's: photo cut-outs on scenes of three times the side it sees
FILMS = long_films.CELLS
OLD = (
    "none/clear",
    "none/poor",
    "E-wrong/clear",
    "adversarial/clear",
)  # cells of docs/quality.md: already in full detail


@dataclass(frozen=True)
class Row:
    """One question: its prompt, what is true, and the box of the object that is asked about, in fractions (of a film also when it
    begins and ends)."""

    prompt: Prompt
    truth: bool
    box: tuple[float, ...] | None
    pair: tuple[str, str]  # the answers whose logits are compared
    object: str


def audio() -> limelight.Adapter:
    return padded_left("demo-audio")


def adapter(where: str) -> limelight.Adapter:
    """The model that a cell's questions are for."""
    if where in REAL:
        return smol()
    return padded_left("demo-video") if where in FILMS else audio() if where in SOUNDS else vision()


@lru_cache(maxsize=1)
def rows(split: str, where: str, n: int) -> tuple[Row, ...]:
    own = adapter(where)
    if where in FILMS:
        return tuple(
            Row(
                own.prepare(q.text, {"video": q.film.clip()}),
                q.label,
                q.film.part_of(q.object),
                ("yes", "no"),
                q.object,
            )
            for q in long_films.long_film_questions(split, where, n)  # type: ignore[arg-type]
        )
    if where in SOUNDS:
        return tuple(
            Row(own.prepare(q.text, {"audio": (q.recording.samples(), RATE)}, long_audio=True), q.label,
                (q.recording.span[0] / q.recording.seconds, 0.0, q.recording.span[1] / q.recording.seconds, 1.0),
                ("yes", "no"), q.object)
            for q in long_sounds.sound_questions(split, where, n)  # type: ignore[arg-type]
        )  # fmt: skip
    if where in REAL:
        return tuple(_scene(own, q) for q in large_questions(split, int(where.partition("/")[2]), n))
    if where in OLD:
        return tuple(
            Row(own.prepare(a.text, {"image": a.image}), bool(a.truth), None, ("yes", "no"), "")
            for a in cell(split, where, n)
        )
    out = []
    for q in canvases.canvas_questions(split, where, n):  # type: ignore[arg-type]
        pair = (q.object, q.other) if q.other else ("yes", "no")
        box = q.canvas.box_of(q.object)
        if q.other and box is not None:  # of both objects
            two = q.canvas.box_of(q.other) or box
            box = (min(box[0], two[0]), min(box[1], two[1]), max(box[2], two[2]), max(box[3], two[3]))
        out.append(Row(own.prepare(q.text, {"image": q.canvas.image()}), q.label, box, pair, q.object))
    return tuple(out)


def _scene(own: limelight.Adapter, q: Question) -> Row:
    width, height = q.picture.image.size
    found = next((t.box for t in q.picture.things if t.noun == q.noun), None)
    box = None if found is None else (found[0] / width, found[1] / height, found[2] / width, found[3] / height)
    return Row(own.prepare(q.text, {"image": q.picture.image}), q.present, box, ("Yes", "No"), q.noun)


def tokens(where: str, row: Row) -> tuple[int, int]:
    own = adapter(where)
    if where in REAL:
        return yes_no_ids()
    if row.pair == ("yes", "no"):
        return answering(own)
    one, two = (own.tokenizer.encode(" " + text, add_special_tokens=False)[0] for text in row.pair)
    return one, two


def answered(where: str, part: Sequence[Row], strategy: Any) -> list[tuple[float, Step]]:
    """(margin, first step) of each row under a strategy; the question on relations is asked behind the beginning of a
    caption, which names objects from left to right."""
    own = adapter(where)
    tensors, _ = batch_of(own, [r.prompt for r in part])
    if where not in REAL and part[0].pair != ("yes", "no"):
        begun = torch.tensor([own.tokenizer.encode(PREFIX, add_special_tokens=False)] * len(part))
        tensors["input_ids"] = torch.cat([tensors["input_ids"], begun], dim=1)
        tensors["attention_mask"] = torch.cat([tensors["attention_mask"], torch.ones_like(begun)], dim=1)
    fn = limelight.custom_generate(
        strategy, processor=own.processor, tensors=tensors, prompts=[r.prompt for r in part], return_cache=False
    )
    with torch.no_grad():
        out = own.model.generate(
            **tensors, custom_generate=fn, max_new_tokens=1, return_dict_in_generate=True, output_logits=True,
            disable_compile=True, do_sample=False,
        )  # fmt: skip
    found = []
    for row, logits, steps in zip(part, out.logits[0], out.steps, strict=True):
        one, two = tokens(where, row)
        found.append((float(logits[one] - logits[two]), steps[0]))
    return found


def batched(asked: Sequence[Row], size: int = BATCH) -> list[list[int]]:
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].prompt.tokens), i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def record(split: str, where: str, n: int, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a strategy's views say of every question of a cell, kept in a cache: ``margin``, ``evidence`` and ``box`` of
    each view, ``seconds`` of processor time, ``truth``.

    ``settings``: of look-again; ``boxes="oracle"``: the object's own box, for an absent object the last one drawn.
    """
    key = hashlib.sha256(
        json.dumps([split, where, n, name, settings, fingerprint(model_of(where)), VERSION]).encode()
    ).hexdigest()[:20]
    path = CACHE / f"{key}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    asked = rows(split, where, n)
    out: dict[str, Any] = {"margin": [None] * n, "views": [None] * n, "truth": [r.truth for r in asked]}
    started = time.process_time()
    for numbers in batched(asked, SCENES if where in REAL else BATCH):
        part = [asked[i] for i in numbers]
        strategy = limelight.strategy(name, **given(settings, part))
        for i, (margin, step) in zip(numbers, answered(where, part, strategy), strict=True):
            out["margin"][i] = round(margin, 5)
            spelled = [tuple(t.strip() for t in v.between) for v in step.views]
            signs = [1.0 if b[0] == asked[i].pair[0] else -1.0 for b in spelled]
            same = [set(b) == set(asked[i].pair) for b in spelled]
            out["views"][i] = [
                [round(s * v.margin, 5) if ok else None, None if v.evidence is None else round(v.evidence, 5),
                 None if v.box is None else [round(x, 1) for x in v.box]]
                for v, s, ok in zip(step.views, signs, same, strict=True)
            ]  # fmt: skip
    out["seconds"] = time.process_time() - started
    CACHE.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(out))
    path.with_suffix(".part").rename(path)
    return out


VERSION = 4  # of what is recorded: raised by a change of the strategy


def model_of(where: str) -> str:
    if where in REAL:
        return "smol-vision"
    return "demo-video" if where in FILMS else "demo-audio" if where in SOUNDS else "demo-vision"


def given(settings: Mapping[str, Any], part: Sequence[Row]) -> dict[str, Any]:
    if settings.get("boxes") != "oracle":
        return dict(settings)
    rng = np.random.default_rng(len(part))
    anywhere = [(x, y, x + 0.2, y + 0.2) for x, y in rng.uniform(0, 0.8, (len(part), 2)).tolist()]
    if "video" in part[0].prompt.media:
        anywhere = [
            (*box, t, t + 0.1) for box, t in zip(anywhere, rng.uniform(0, 0.9, len(part)).tolist(), strict=True)
        ]
    boxes = tuple((r.box or a,) for r, a in zip(part, anywhere, strict=True))
    return {**settings, "boxes": boxes}
