"""MME's hallucination subset: existence, count, position, color; two questions per image."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.groups import pairs
from limelight.benchmarks.scorers.measure import Block, records_by_split, total_block
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

SPLITS = ("existence", "count", "position", "color")
ORIGIN = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"


def _folder(split: str) -> Needed:
    return Needed((f"{split}/", f"MME_Benchmark_release_version/{split}/", f"MME_Benchmark/{split}/"), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Load one text file per image, lines "question TAB Yes|No"; next to the images, or in questions_answers_YN and images."""
    base = folder.find(_folder(split))
    inside = base / "questions_answers_YN"
    texts = sorted((inside if inside.is_dir() else base).glob("*.txt"))
    pictures = base / "images" if inside.is_dir() else base
    if not texts:
        raise DataError(f"no question files (*.txt) in {base}", hint=f"they come with the images, from {ORIGIN}")
    for file in texts:
        name = file.relative_to(folder.root).as_posix()
        found = [
            p for p in pictures.glob(f"{glob.escape(file.stem)}.*") if p.suffix.lower() in (".jpg", ".png", ".jpeg")
        ]
        image = found[0] if found else pictures / f"{file.stem}.jpg"
        lines = folder.text(Needed((name,), ORIGIN)).splitlines()
        for number, (at, line) in enumerate((at, x) for at, x in enumerate(lines, 1) if x.strip()):
            with folder.rejected.row(f"{file}, line {at}"):
                question, tab, answer = line.rstrip().rpartition("\t")
                if not tab or not question.strip():
                    raise DataError(f"{line!r} is not 'question TAB answer'", hint=f"download it again from {ORIGIN}")
                meta = {"split": split, "cluster": f"{split}/{file.stem}"}
                yield Sample(f"{split}/{file.stem}/{number}", question, {"image": [image]}, label(answer), meta)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    blocks, halves = [], []
    for split, rows in records_by_split(records, SPLITS).items():
        pair = pairs(split, rows, scoring.parser, lambda r: str(r.meta["cluster"]))
        blocks += [yes_no(split, rows, scoring.parser), pair]
        halves.append(pair)
    if len(halves) > 1:
        blocks.append(total_block("total", halves, ("score",)))
    return [*blocks, *reliance("", records, "image")]


def _hub(split: str) -> HubTable:
    def convert(row: Mapping[str, Any], number: int) -> Sample | None:
        if column("MME", row, "category") != split:
            return None
        meta = {"split": split, "cluster": f"{split}/{row['question_id']}"}
        question = text("MME", row, "question")
        return Sample(f"{row['question_id']}/{number}", question, {"image": [row["image"]]}, label(row["answer"]), meta)

    return HubTable("lmms-lab/MME", "test", convert)


TASK = Task(
    name="mme",
    version="1",
    paper="Fu et al., MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, arXiv 2306.13394",
    about="existence, count, position and color; score = 100 * (accuracy + accuracy+), of 200 each",
    modality="image",
    splits=SPLITS,
    files=lambda split: [_folder(split)],
    load=load,
    score=score,
    parsers=("mme", "strict", "official", *COMMON),
    media=ORIGIN,
    headline=("*/accuracy", "*/accuracy+", "*/score", "image reliance"),
    max_new_tokens=16,
    hub={split: _hub(split) for split in SPLITS},
    goal=("*/accuracy",),
)
