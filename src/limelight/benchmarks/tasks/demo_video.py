"""Benchmark of the video miniature: questions on what, when and in which order with true or false hints, and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from limelight.benchmarks.data import Folder
from limelight.benchmarks.scorers.chair import caption_block, caption_columns
from limelight.benchmarks.scorers.detection import answer_unit, detection, first_mentions, words_among
from limelight.benchmarks.scorers.grounding import grounding_block, reliance
from limelight.benchmarks.scorers.measure import Block, block, mean_block, records_by_split, share
from limelight.benchmarks.scorers.placed import place_moments
from limelight.benchmarks.scorers.yes_no import COMMON, strict, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.benchmarks.tasks.demo_vision import first
from limelight.types import Record, Sample

if TYPE_CHECKING:
    from limelight.demo.films import Film
    from limelight.types import Clip

PER_CELL = 1000
PER_CAPTION_SET = 1000
TOPICS: Mapping[str, tuple[str, ...]] = {
    "what": ("none", "E-right", "E-wrong", "C-right", "C-wrong"),
    "when": ("none", "E-right", "E-wrong"),
    "order": ("none", "E-right", "E-wrong"),
}
VISIBILITIES = ("clear", "medium", "poor")
CELLS = tuple(f"{t}-{hint}/{v}" for t, hints in TOPICS.items() for hint in hints for v in VISIBILITIES)
CAPTIONS = (*(f"caption-{hint}" for hint in TOPICS["what"]), "caption-none/poor", "caption-E-wrong/poor")  # else clear
SPLITS = (*CELLS, *CAPTIONS)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the requests of the held-out test split; films are drawn on demand."""
    from limelight.demo import film_questions, films, scenes

    if split in CELLS:
        make, count = partial(film_questions.questions, "test", split), PER_CELL
    else:
        hint, _, suffix = split.removeprefix("caption-").partition("/")
        seen: scenes.Visibility = "poor" if suffix else "clear"
        make, count = partial(film_questions.captions, "test", hint, visibility=seen), PER_CAPTION_SET
    for q in first(make, count):
        meta: dict[str, Any] = {"split": split, "hint": q.hint_kind, "topic": q.topic}
        if split in CELLS:
            meta["moments"] = [[t / films.RATE, (t + 1) / films.RATE] for t in q.frames]
            meta["objects"] = list(q.objects)
        else:
            meta["words"] = list(films.NAMES)
            meta["events"] = [list(event) for event in q.truth]
        meta["cluster"] = f"{q.film.visibility}/{q.film.index}"
        truth = q.truth if split in CELLS else list(q.film.names)
        yield Sample(q.id, q.text, {"video": [partial(_clip, q.film)]}, truth, meta)


def _clip(film: Film) -> Clip:
    return film.clip()


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Yes/no blocks ("no" is the positive class), captions, temporal grounding by topic, reliance, detection."""
    by_split = records_by_split(records, SPLITS)
    cells = {s: yes_no(s, rows, scoring.parser, positive="no") for s, rows in by_split.items() if s in CELLS}
    for topic in TOPICS:
        hinted = [b for s, b in cells.items() if s in {f"{topic}-{h}/clear" for h in TOPICS[topic][1:]}]
        if len(hinted) == len(TOPICS[topic]) - 1:
            cells[f"{topic}-hints/clear"] = mean_block(f"{topic}-hints/clear", hinted)
    blocks = list(cells.values())
    for split, rows in by_split.items():
        blocks += _captions(split, rows) if split not in CELLS else []
    sign = scoring.options.get("sign", "abs")
    for topic in TOPICS:
        located = []
        for r in records:
            if r.meta.get("topic") != topic or not r.meta.get("moments"):
                continue
            found = place_moments(r, [(start, stop) for start, stop in r.meta["moments"]])
            if found is not None:
                located.append((r, found.relevance, found.coverage))
        blocks += [grounding_block(f"temporal/{topic}", located, sign)] if located else []
    return [*blocks, *reliance("", records, "video"), *_detection(by_split)]


def _detection(by_split: Mapping[str, Sequence[Record]]) -> list[Block]:
    from limelight.demo.films import NAMES

    described = [r for s, rows in by_split.items() if s not in CELLS for r in rows]
    asked = [r for s, rows in by_split.items() if s in CELLS for r in rows]
    mentions = [u for r in described for u in first_mentions(r, words_among(NAMES), r.target)]
    answers = [u for r in asked for u in answer_unit(r, strict(r.answer, r.target), r.target)]
    return [*detection("captions", mentions), *detection("questions", answers)]


def _captions(split: str, records: Sequence[Record]) -> list[Block]:
    """CHAIR and recall of the objects; the share of events that are told, and of captions with all of them in order."""
    from limelight.demo.film_language import mentioned, told

    rows = [(r.id, caption_columns(mentioned(r.answer), frozenset(r.target), len(r.answer.split()))) for r in records]
    events = []
    for r in records:
        true, said = [tuple(e) for e in r.meta["events"]], told(r.answer)
        hits = float(len(set(true) & set(said)))
        events.append((r.id, {"n": 1.0, "hits": hits, "true": float(len(true)), "ordered": float(said == true)}))
    measures = [share("event recall", "hits", "true"), share("all in order", "ordered", "n")]
    return [caption_block(split, rows), block(f"{split}/events", events, measures)]


TASK = Task(
    name="demo_video",
    version="1",
    paper="this library (recipes/demo_video/README.md)",
    about="the shipped video miniature's held-out questions on what, when and order, and captions; NO is the positive class; needs no data",
    modality="video",
    splits=SPLITS,
    files=lambda split: [],
    load=load,
    score=score,
    parsers=("strict", "official", "cascade", *COMMON),
    headline=(
        "*/accuracy", "*/F1", "*/CHAIR_i", "caption-*/recall", "*/all in order", "temporal/*/grounding", "temporal/*/chance",
        "video reliance", "captions/*/AUROC", "questions/*/AUROC",
    ),
    goal=("*/accuracy",),
    max_new_tokens=40,
)  # fmt: skip
