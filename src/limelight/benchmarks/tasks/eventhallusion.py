"""EventHallusion: yes/no questions about events in videos, and descriptions that a judge compares with the event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.judge import judged
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://github.com/Stevetich/EventHallusion, folder questions"
KINDS = ("entire", "interleave", "misleading")
SPLITS = (*KINDS, *(f"{kind}/descriptions" for kind in KINDS))
SUFFIX = "\nPlease answer yes or no:"
DESCRIBE = "Please describe this video in detail."
RUBRIC = """\
You compare a model's description of a video that you cannot see with an event that happens in it. Only events and \
actions count: ignore what is said about objects, places and mood.

{contents}

Event: {reference}

Description: {answer}

Explain briefly. Then end with one line: "Correct: yes" or "Correct: no".
"""
_CRITERIA = {
    "entire": "The description is correct if the event that it reports is consistent with this event.",
    "interleave": "The description is correct if it mentions this unexpected event.",
    "misleading": "The description is correct if it reports this event and no event that is unrelated to it.",
}


def _file(kind: str) -> Needed:
    # interleave was called mix at first
    names = [f"{k}_questions.json" for k in ((kind, "mix") if kind == "interleave" else (kind,))]
    return Needed(
        tuple(f"{folder}{n}" for n in names for folder in ("questions/", "", "eventhallusion/questions/")), ORIGIN
    )


def _videos(kind: str) -> Needed:
    bases = ("videos/", "", "eventhallusion/videos/", "eventhallusion/")
    return Needed((*(f"{b}{kind}/" for b in bases), "videos/", "./"), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield each video's questions, or one request for a description of it; the file is ``{kind}/{id}.mp4``."""
    kind, _, described = split.partition("/")
    name = _file(kind).names[0]
    for row in folder.each(_file(kind)):
        with folder.rejected.row(row.where):
            key = text(name, row, "id")
            media = {"video": [folder.media(_videos(kind), f"{key}.mp4")]}
            meta: dict[str, Any] = {"split": split, "cluster": key, "category": str(row.get("category") or "")}
            if described:
                event = _event(row, kind)
                yield Sample(f"{split}/{key}", DESCRIBE, media, event, {**meta, "contents": [_CRITERIA[kind]]})
                continue
            asked = column(name, row, "questions")
            if not isinstance(asked, list) or not all(isinstance(q, dict) for q in asked):
                raise DataError(f"expected a list of questions, got {asked!r}", hint="download the file again")
            for number, q in enumerate(asked):
                prompt, gold = text(name, q, "question") + SUFFIX, label(column(name, q, "answer"))
                yield Sample(f"{split}/{key}/{number}", prompt, media, gold, meta)


def _event(row: Mapping[str, Any], kind: str) -> str:
    about = column(_file(kind).names[0], row, "event_info")
    if not isinstance(about, dict):
        raise DataError(f"expected an event_info, got {about!r}", hint="download the file again")
    return text("event_info", about, "unexpected" if kind == "interleave" else "caption")


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    of = records_by_split(records, SPLITS)
    asked = [yes_no(s, rows, scoring.parser) for s, rows in of.items() if s in KINDS]
    described = [judged(s, rows) for s, rows in of.items() if s not in KINDS]
    every = [r for s, rows in of.items() if s in KINDS for r in rows]
    overall = [yes_no("overall", every, scoring.parser)] if len(asked) > 1 else []
    mean = [mean_block("descriptions/mean", described)] if len(described) > 1 else []
    return [*asked, *overall, *described, *mean, *reliance("", records, "video")]


TASK = Task(
    name="eventhallusion",
    version="1",
    paper="Zhang et al., EventHallusion: Diagnosing Event Hallucinations in Video LLMs, arXiv 2409.16597",
    about="yes/no questions about events in videos; descriptions are compared with the event by a judge (--judge-url)",
    modality="video",
    splits=SPLITS,
    files=lambda split: [_file(split.partition("/")[0])],
    load=load,
    score=score,
    parsers=("eventhallusion", "strict", "official", *COMMON),
    media="https://github.com/Stevetich/EventHallusion (README: the videos' archive), folders videos/entire, ...",
    headline=("*/accuracy", "*/yes ratio", "*/correct", "video reliance"),
    max_new_tokens=256,
    rubric=RUBRIC,
    goal=("*/accuracy",),
)
