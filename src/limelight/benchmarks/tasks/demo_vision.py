"""Benchmark of the vision miniature: questions with true or false hints, co-occurring objects, captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from limelight.benchmarks.data import Folder
from limelight.benchmarks.scorers.chair import caption_block, caption_columns
from limelight.benchmarks.scorers.detection import answer_unit, detection, first_mentions, words_among
from limelight.benchmarks.scorers.grounding import grounding_block, reliance
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.scorers.placed import boxes_over, image_parts, place
from limelight.benchmarks.scorers.yes_no import COMMON, strict, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.types import Record, Sample

T = TypeVar("T")
PER_CELL = 1000
PER_CAPTION_SET = 1000
SETS = ("none", "E-right", "E-wrong", "C-right", "C-wrong", "intact", "random", "popular", "adversarial")
VISIBILITIES = ("clear", "medium", "poor")
CELLS = tuple(f"{name}/{visibility}" for name in SETS for visibility in VISIBILITIES)
CAPTIONS = (*(f"caption-{name}" for name in SETS[:5]), "caption-none/poor", "caption-E-wrong/poor")  # else clear
SPLITS = (*CELLS, *CAPTIONS)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield questions and captions of the held-out test split; images are drawn on demand."""
    from limelight.demo import language, scenes
    from limelight.demo.questions import captions, questions

    if split.startswith("caption-"):
        hint, _, seen = split.removeprefix("caption-").partition("/")
        visibility: scenes.Visibility = "poor" if seen else "clear"
        for c in first(lambda n: captions("test", hint, n, visibility=visibility), PER_CAPTION_SET):
            cluster = f"{c.scene.kind}/{c.visibility}/{c.scene.index}"
            shown = {"split": split, "cluster": cluster, "words": list(scenes.OBJECTS)}
            yield Sample(c.id, c.text, {"image": [c.scene.image]}, sorted(c.objects), shown)
        return
    for q in first(lambda n: questions("test", split, n), PER_CELL):
        cluster = f"{q.scene.kind}/{q.visibility}/{q.scene.index}"
        box = [x / scenes.SIZE for x in q.scene.boxes[q.object]] if q.label == language.YES else None
        meta = {"split": split, "cluster": cluster, "object": q.object, "hint": q.hint_kind, "box": box}
        yield Sample(q.id, q.text, {"image": [q.scene.image]}, q.label, meta)


def first(make: Callable[[int], list[T]], n: int) -> Iterator[T]:
    """Yield ``make(n)`` incrementally, so that a limited run does not lay out a thousand scenes."""
    done = 0
    while done < n:
        upto = min(n, max(16, 4 * done))
        yield from make(upto)[done:]
        done = upto


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    by_split = records_by_split(records, SPLITS)
    cells = {s: yes_no(s, rows, scoring.parser) for s, rows in by_split.items() if s in CELLS}
    for visibility in VISIBILITIES:
        hinted = [b for s, b in cells.items() if s in {f"{n}/{visibility}" for n in SETS[1:5]}]
        if len(hinted) == 4:
            cells[f"hints/{visibility}"] = mean_block(f"hints/{visibility}", hinted)
    described = [_captions(s, rows) for s, rows in by_split.items() if s not in CELLS]
    boxed = []
    for r in records:
        if r.meta.get("box") and (parts := image_parts(r)):
            left, top, right, bottom = r.meta["box"]
            found = place(parts, boxes_over([(left, top, right, bottom)]))
            boxed += [(r, found.relevance, found.coverage)] if found.seen else []
    spatial = [grounding_block("spatial", boxed, scoring.options.get("sign", "abs"))] if boxed else []
    return [*cells.values(), *described, *spatial, *reliance("", records, "image"), *_detection(by_split)]


def _detection(by_split: Mapping[str, Sequence[Record]]) -> list[Block]:
    from limelight.demo.scenes import OBJECTS

    described = [r for s, rows in by_split.items() if s not in CELLS for r in rows]
    questions = [r for s, rows in by_split.items() if s in CELLS for r in rows]
    mentions = [u for r in described for u in first_mentions(r, words_among(OBJECTS), r.target)]
    answers = [u for r in questions for u in answer_unit(r, strict(r.answer, r.target), r.target)]
    return [*detection("captions", mentions), *detection("questions", answers)]


def _captions(split: str, records: Sequence[Record]) -> Block:
    from limelight.demo.scenes import OBJECTS

    rows = []
    for r in records:
        words = "".join(c if c.isalpha() else " " for c in r.answer.lower()).split()
        rows.append((r.id, caption_columns([w for w in words if w in OBJECTS], frozenset(r.target), len(words))))
    return caption_block(split, rows)


TASK = Task(
    name="demo_vision",
    version="2",
    paper="this library (docs/miniature.md)",
    about="the shipped vision miniature's held-out questions and captions; needs no data",
    modality="image",
    splits=SPLITS,
    files=lambda split: [],
    load=load,
    score=score,
    parsers=("strict", "official", *COMMON),
    headline=(
        "*/accuracy",
        "*/CHAIR_i",
        "caption-*/recall",
        "spatial/grounding",
        "image reliance",
        "captions/*/AUROC",
        "questions/*/AUROC",
    ),
    max_new_tokens=24,
    goal=("*/accuracy",),
)
