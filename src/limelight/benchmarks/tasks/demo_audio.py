"""Benchmark of the audio miniature: questions with true or false hints, captions in time order, transcription, silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from limelight.benchmarks.data import Folder
from limelight.benchmarks.scorers.chair import caption_block, caption_columns
from limelight.benchmarks.scorers.detection import answer_unit, detection, first_mentions, spoken_words, words_among
from limelight.benchmarks.scorers.grounding import grounding_block, reliance
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.scorers.placed import place_events
from limelight.benchmarks.scorers.wer import basic, invented_words, quiet, speech
from limelight.benchmarks.scorers.yes_no import COMMON, strict, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.benchmarks.tasks.demo_vision import first
from limelight.types import Record, Sample

if TYPE_CHECKING:
    from limelight.demo.sounds import Recording

PER_CELL = 1000
PER_CAPTION_SET = 1000
PER_SET = 200
HINTS = ("none", "E-right", "E-wrong", "C-right", "C-wrong")
CLARITIES = ("clear", "medium", "poor")
CELLS = tuple(f"{hint}/{clarity}" for hint in HINTS for clarity in CLARITIES)
SPOKEN = tuple(f"{phrase}/{clarity}" for phrase in ("usual", "broken", "digits") for clarity in CLARITIES)
QUIET = ("noise", "silence", "events")
CAPTIONS = (*(f"caption-{hint}" for hint in HINTS), "caption-none/poor", "caption-E-wrong/poor")  # else clear
SPLITS = (
    *CELLS, *CAPTIONS, *(f"speech-{name}" for name in SPOKEN), *(f"quiet-{n}" for n in QUIET),
)  # fmt: skip


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the requests of the held-out test split; recordings are synthesised on demand."""
    from limelight.demo import sound_questions, sounds

    kind, _, name = split.partition("-")
    make: Callable[[int], list[sound_questions.Request]]
    if split in CELLS:
        make, count = partial(sound_questions.questions, "test", split), PER_CELL
    elif kind == "caption":
        hint, _, suffix = name.partition("/")
        clarity: sounds.Clarity = "poor" if suffix else "clear"
        make, count = partial(sound_questions.captions, "test", hint, clarity=clarity), PER_CAPTION_SET
    else:
        make, count = partial(sound_questions.transcriptions, "test", name), PER_SET
    for a in first(make, count):
        meta: dict[str, Any] = {"split": split, "hint": a.hint_kind, "seconds": float(sounds.SECONDS)}
        if split in CELLS:
            span = a.recording.spans.get(a.object)
            meta |= {"object": a.object, "span": list(span) if span else None}
        meta["cluster"] = f"{a.recording.kind}/{a.recording.clarity}/{a.recording.index}"
        meta |= {"words": list(sounds.EVENTS)} if kind == "caption" else {}
        truth = list(a.truth) if isinstance(a.truth, tuple) else a.truth
        yield Sample(a.id, a.text, {"audio": [partial(_sound, a.recording)]}, truth, meta)


def _sound(recording: Recording) -> tuple[Any, int]:
    from limelight.demo.synthesis import RATE

    return recording.samples(), RATE


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Yes/no blocks ("no" is the positive class), captions, word errors, invented words, temporal grounding, reliance."""
    by_split = records_by_split(records, SPLITS)
    cells = {s: yes_no(s, rows, scoring.parser, positive="no") for s, rows in by_split.items() if s in CELLS}
    for clarity in CLARITIES:
        hinted = [b for s, b in cells.items() if s in {f"{hint}/{clarity}" for hint in HINTS[1:]}]
        if len(hinted) == 4:
            cells[f"hints/{clarity}"] = mean_block(f"hints/{clarity}", hinted)
    blocks = list(cells.values())
    for split, rows in by_split.items():
        if split.startswith("caption-"):
            blocks.append(_captions(split, rows))
        elif split.startswith("speech-"):
            blocks.append(speech(split, rows))
        elif split.startswith("quiet-"):
            blocks.append(quiet(split, rows))
    located = []
    for r in records:
        if not r.meta.get("span"):
            continue
        on, off = r.meta["span"]
        found = place_events(r, [(on, off)])
        if found is not None and found.seen:
            located.append((r, found.relevance, found.coverage))
    temporal = [grounding_block("temporal", located, scoring.options.get("sign", "abs"))] if located else []
    return [*blocks, *temporal, *reliance("", records, "audio"), *_detection(by_split)]


def _detection(by_split: Mapping[str, Sequence[Record]]) -> list[Block]:
    from limelight.demo.sounds import EVENTS

    def of(*kinds: str) -> list[Record]:
        return [r for s, rows in by_split.items() if s.partition("-")[0] in kinds and s not in CELLS for r in rows]

    mentions = [u for r in of("caption") for u in first_mentions(r, words_among(EVENTS), r.target)]
    questions = [r for s, rows in by_split.items() if s in CELLS for r in rows]
    answers = [u for r in questions for u in answer_unit(r, strict(r.answer, r.target), r.target)]
    invented = [u for r in of("speech", "quiet") for u in spoken_words(r, invented_words, basic)]
    return [
        *detection("captions", mentions), *detection("questions", answers), *detection("transcripts", invented),
    ]  # fmt: skip


def _captions(split: str, records: Sequence[Record]) -> Block:
    from limelight.demo.sound_language import mentioned

    rows = [(r.id, caption_columns(mentioned(r.answer), frozenset(r.target), len(r.answer.split()))) for r in records]
    return caption_block(split, rows)


TASK = Task(
    name="demo_audio",
    version="2",
    paper="this library (recipes/demo_audio/README.md)",
    about="the shipped audio miniature's held-out questions, captions and phrases; NO is the positive class; needs no data",
    modality="audio",
    splits=SPLITS,
    files=lambda split: [],
    load=load,
    score=score,
    parsers=("strict", "official", "cascade", *COMMON),
    headline=(
        "*/accuracy", "*/F1", "*/CHAIR_i", "caption-*/recall", "*/WER", "*/invented words per clip", "temporal/grounding",
        "temporal/chance", "audio reliance", "captions/*/AUROC", "questions/*/AUROC", "transcripts/*/AUROC",
    ),
    goal=("*/accuracy",),
    max_new_tokens=24,
)  # fmt: skip
