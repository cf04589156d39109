"""Your own labelled media: metrics of captions, questions and transcripts, and detection of invented words.

Rows of ``labelled.jsonl`` (or .csv, .tsv, .json), with media in the same folder:

    {"image": "a.jpg", "prompt": "Describe the picture.", "objects": ["dog", "ball"]}      captions: objects present
    {"image": "a.jpg", "prompt": "Is there a cat?", "answer": "no"}                        questions: correct answer
    {"audio": "b.wav", "prompt": "Transcribe.", "text": "good morning"}                    transcripts: spoken text

Captions need ``objects.txt``: one object per line, words separated by ", ", the first one its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.chair import Lexicon, caption_block
from limelight.benchmarks.scorers.detection import Unit, answer_unit, detection, first_mentions, spoken_words
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, records_by_split
from limelight.benchmarks.scorers.wer import basic, invented_words, quiet, speech
from limelight.benchmarks.scorers.yes_no import COMMON, PARSERS, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError, SettingError
from limelight.types import Modality, Record, Sample

ROWS = Needed(
    ("labelled.jsonl", "labelled.csv", "labelled.tsv", "labelled.json"),
    "you: rows with a medium, a prompt, and objects, answer or text",
)
OBJECTS = Needed(("objects.txt",), 'you: one object per line, words separated by ", "', False)
SPLITS = ("captions", "questions", "transcripts")
_TRUTH = {"captions": "objects", "questions": "answer", "transcripts": "text"}
_MEDIA: tuple[Modality, ...] = ("image", "audio", "video")


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the rows that have the split's reference: ``objects``, ``answer`` or ``text``."""

    def sample(row: Row) -> Sample | None:
        if row.get(_TRUTH[split]) is None:
            return None
        kinds = [m for m in _MEDIA if row.get(m)]
        if len(kinds) != 1:
            raise DataError(f"expected one of {', '.join(_MEDIA)}, got {kinds or 'none'}", hint="one file per row")
        file = text(split, row, kinds[0])
        meta = {"split": split, "cluster": str(row.get("cluster") or file)}
        key = f"{split}/{row.get('id') or row.number}"
        prompt = text(split, row, "prompt", "question")
        return Sample(key, prompt, {kinds[0]: [folder.root / file]}, _truth(split, row), meta)

    yield from folder.samples(ROWS, sample)


def _truth(split: str, row: Row) -> Any:
    value = column(split, row, _TRUTH[split])
    if split == "questions":
        return label(value)
    if split == "transcripts":
        if not isinstance(value, str):
            raise DataError(f"the text is {value!r}", hint='use "" where there is no speech')
        return value
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(
            f"expected a list of objects, got {value!r}", hint='for example ["dog", "ball"], or [] for none'
        )
    return [n.strip() for n in names if n.strip()]


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Score each kind like its own task, and the detection of invented words where answers have per-token scores."""
    of = records_by_split(records, SPLITS)
    blocks: list[Block] = []
    if "captions" in of:
        lexicon = _lexicon(scoring)
        rows: list[tuple[str, dict[str, float]]] = []
        units: list[Unit] = []
        for r in of["captions"]:
            truth = lexicon.truth(r.target, ())
            rows.append((r.id, lexicon.columns(r.answer, truth)))
            units += first_mentions(r, lexicon.located, truth)
        blocks += [caption_block("captions", rows, [str(r.meta["cluster"]) for r in of["captions"]])]
        blocks += detection("captions", units)
    if "questions" in of:
        parse = PARSERS[scoring.parser]
        blocks += [yes_no("questions", of["questions"], scoring.parser)]
        answers = [u for r in of["questions"] for u in answer_unit(r, parse(r.answer, r.target), r.target)]
        blocks += detection("questions", answers)
    if "transcripts" in of:
        spoken = [r for r in of["transcripts"] if basic(r.target)]
        silent = [r for r in of["transcripts"] if not basic(r.target)]
        blocks += [speech("transcripts", spoken)] if spoken else []
        blocks += [quiet("silence", silent)] if silent else []
        words = [u for r in of["transcripts"] for u in spoken_words(r, invented_words, basic)]
        blocks += detection("transcripts", words)
    return [*blocks, *(b for m in _MEDIA for b in reliance("", records, m))]


def _lexicon(scoring: Scoring) -> Lexicon:
    path = None if scoring.assets is None else scoring.assets / OBJECTS.names[0]
    if path is None or not path.is_file():
        raise SettingError("captions need objects.txt", hint=OBJECTS.origin)
    return Lexicon.parse(path.read_text(encoding="utf-8"))


def _files(split: str) -> list[Needed]:
    return [ROWS, Needed(OBJECTS.names, OBJECTS.origin)] if split == "captions" else [ROWS]


TASK = Task(
    name="labelled",
    version="1",
    paper="this library (docs/benchmarks.md)",
    about="your own labelled media: captions, yes/no questions or transcripts, and which of their words are invented",
    modality="image",
    splits=SPLITS,
    files=_files,
    load=load,
    score=score,
    parsers=("strict", "official", *COMMON),
    media="the folder of labelled.jsonl",
    headline=("captions/CHAIR_i", "*/accuracy", "*/WER", "*/AUROC"),
    max_new_tokens=256,
    wants=frozenset({"evidence"}),
    assets=(OBJECTS,),
    goal=("*/accuracy",),
)
