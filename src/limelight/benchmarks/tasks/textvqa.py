"""TextVQA: short answers to questions about text in images, compared with ten people's answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.scorers.vqa import soft_accuracy
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://textvqa.org/dataset"
FILE = Needed(("TextVQA_0.5.1_val.json", "textvqa/TextVQA_0.5.1_val.json"), ORIGIN)
PICTURES = Needed(("train_images/", "textvqa/train_images/", "val_images/", "images/", "./"), ORIGIN)
SUFFIX = "\nAnswer the question using a single word or phrase."
PEOPLE = 10


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the validation questions with LLaVA's suffix, without recognised text; the image is ``{image_id}.jpg``."""
    content = folder.json(FILE)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{FILE.names[0]} is not {{"data": [...]}}', hint=f"get it from {ORIGIN}")
    for number, row in enumerate(rows):
        with folder.rejected.row(f"{folder.find(FILE)}, row {number}"):
            image = text(FILE.names[0], row, "image_id")
            yield _sample(split, row, image, folder.media(PICTURES, f"{image}.jpg"))


def _sample(split: str, row: Mapping[str, Any], image: str, picture: Any) -> Sample:
    answers = column("TextVQA", row, "answers")
    if not isinstance(answers, list) or len(answers) != PEOPLE or not all(isinstance(a, str) for a in answers):
        raise DataError(
            f"expected {PEOPLE} answers, got {answers!r}", hint="use the validation file; the test file has none"
        )
    key = f"{split}/{text('TextVQA', row, 'question_id')}"
    prompt = text("TextVQA", row, "question") + SUFFIX
    return Sample(key, prompt, {"image": [picture]}, answers, {"split": split, "cluster": image})


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    return [soft_accuracy("", records), *reliance("", records, "image")]


def _convert(row: Mapping[str, Any], number: int) -> Sample | None:
    return _sample("val", {**row, "answers": list(row["answers"])}, text("TextVQA", row, "image_id"), row["image"])


TASK = Task(
    name="textvqa",
    version="1",
    paper="Singh et al., Towards VQA Models That Can Read, CVPR 2019 (arXiv 1904.08920)",
    about="short answers about text in images; accuracy by agreement with ten people's answers",
    modality="image",
    splits=("val",),
    files=lambda split: [FILE],
    load=load,
    score=score,
    media=f"{ORIGIN} (train_val_images.zip), folder train_images",
    headline=("accuracy", "image reliance"),
    max_new_tokens=16,
    hub={"val": HubTable("lmms-lab/textvqa", "validation", _convert)},
    goal=("accuracy",),
)
