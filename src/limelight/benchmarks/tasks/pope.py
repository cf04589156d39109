"""POPE: "Is there an X in the image?" on three image sets with three ways of sampling absent objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.detection import answer_unit, detection
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.scorers.yes_no import COMMON, PARSERS, label, yes_no
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.types import Record, Sample

SAMPLINGS = ("random", "popular", "adversarial")
SPLITS = tuple(f"{pictures}/{sampling}" for pictures in ("coco", "aokvqa", "gqa") for sampling in SAMPLINGS)
ORIGIN = "https://github.com/AoiDragon/POPE, output/coco, output/seem/aokvqa, output/seem/gqa"
COCO = Needed(("val2014/", "coco/val2014/", "images/val2014/", "images/", "coco/", "./"), "MSCOCO val2014")
GQA = Needed(("gqa/images/", "images/gqa/", "images/", "gqa/", "./"), "https://cs.stanford.edu/people/dorarad/gqa")


def _file(split: str) -> Needed:
    pictures, sampling = split.split("/")
    stems = [f"{pictures}_pope_{sampling}.json"] if pictures == "coco" else [f"{pictures}_pope_seem_{sampling}.json"]
    stems += [] if pictures == "coco" else [f"{pictures}_pope_{sampling}.json"]
    return Needed(tuple(f"{folder}{s}" for s in stems for folder in (f"{pictures}/", "", f"pope/{pictures}/")), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    pictures = GQA if split.startswith("gqa") else COCO

    def sample(row: Mapping[str, Any]) -> Sample:
        image = text(split, row, "image")
        return Sample(
            f"{split}/{text(split, row, 'question_id')}",
            text(split, row, "text", "question"),
            {"image": [folder.media(pictures, image)]},
            label(column(split, row, "label", "answer")),
            {"split": split, "cluster": image},
        )

    yield from folder.samples(_file(split), sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    by_split = records_by_split(records, SPLITS)
    blocks = {s: yes_no(s, rows, scoring.parser) for s, rows in by_split.items() if rows}
    for pictures in ("coco", "aokvqa", "gqa"):
        parts = [b for s, b in blocks.items() if s.startswith(pictures)]
        if len(parts) > 1:
            blocks[f"{pictures}/mean"] = mean_block(f"{pictures}/mean", parts)
    parse = PARSERS[scoring.parser]
    answers = [u for r in records for u in answer_unit(r, parse(r.answer, r.target), r.target)]
    return [*blocks.values(), *reliance("", records, "image"), *detection("answers", answers)]


def _hub(sampling: str) -> HubTable:
    def convert(row: Mapping[str, Any], number: int) -> Sample | None:
        if column("POPE", row, "category") != sampling:
            return None
        meta = {"split": f"coco/{sampling}", "cluster": row["image_source"]}
        name = f"coco/{sampling}/{text('POPE', row, 'question_id')}"
        return Sample(name, text("POPE", row, "question"), {"image": [row["image"]]}, label(row["answer"]), meta)

    return HubTable("lmms-lab/POPE", "test", convert)


TASK = Task(
    name="pope",
    version="1",
    paper="Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023 (arXiv 2305.10355)",
    about="yes/no questions about objects in an image; yes is the positive class",
    modality="image",
    splits=SPLITS,
    files=lambda split: [_file(split)],
    load=load,
    score=score,
    parsers=("official", "vcd", "lmms-eval", "strict", *COMMON),
    media="MSCOCO val2014 (https://cocodataset.org, folder val2014) and GQA (folder gqa/images)",
    headline=("*/accuracy", "*/F1", "*/yes ratio", "image reliance"),
    max_new_tokens=16,
    hub={f"coco/{s}": _hub(s) for s in SAMPLINGS},
    goal=("*/accuracy",),
)
