"""V*Bench: multiple choice about small details of large images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.choice import LETTERS, choice
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, records_by_split
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://huggingface.co/datasets/craigwu/vstar_bench"
FILE = Needed(("test_questions.jsonl", "vstar_bench/test_questions.jsonl", "vstar/test_questions.jsonl"), ORIGIN)
PICTURES = Needed(("./", "vstar_bench/", "vstar/", "images/"), ORIGIN)
SPLITS = ("direct_attributes", "relative_position")


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the questions of a category; the options are in the question's text, the label is a letter."""

    def sample(row: Mapping[str, Any]) -> Sample | None:
        if text(FILE.names[0], row, "category") != split:
            return None
        question, image = text(FILE.names[0], row, "text"), text(FILE.names[0], row, "image")
        letters = re.findall(r"\(([A-D])\)", question)
        gold = text(FILE.names[0], row, "label").strip().strip("().").upper()
        if gold not in letters:
            raise DataError(
                f"the label {column(FILE.names[0], row, 'label')!r} is not one of {letters}", hint="correct the row"
            )
        count = LETTERS.index(max(letters)) + 1
        meta = {"split": split, "cluster": image, "choices": list(LETTERS[:count])}
        key = f"{split}/{text(FILE.names[0], row, 'question_id')}"
        return Sample(key, question, {"image": [folder.media(PICTURES, image)]}, gold, meta)

    yield from folder.samples(FILE, sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    blocks = [choice("", records, scoring.parser)]
    for split, rows in records_by_split(records, SPLITS).items():
        blocks.append(choice(split, rows, scoring.parser))
    return [*blocks, *reliance("", records, "image")]


TASK = Task(
    name="vstar",
    version="1",
    paper="Wu and Xie, V*: Guided Visual Search as a Core Mechanism in Multimodal LLMs, CVPR 2024 (arXiv 2312.14135)",
    about="multiple choice about small details of large images; the answer is a letter, in the paper the likeliest option",
    modality="image",
    splits=SPLITS,
    files=lambda split: [FILE],
    load=load,
    score=score,
    parsers=("lmms-eval", "strict", "official"),
    media=f"{ORIGIN}, folders direct_attributes and relative_position",
    headline=("*accuracy over all", "image reliance"),
    max_new_tokens=16,
    goal=("accuracy over all",),
)
