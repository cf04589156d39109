"""MMHal-Bench: 96 open questions, rated from 0 to 6 by a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from limelight.benchmarks.data import Folder, Needed, Row, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.judge import rated
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.task import Scoring, Task
from limelight.types import Record, Sample

ORIGIN = "https://huggingface.co/datasets/Shengcao1006/MMHal-Bench"
FILE = Needed(("response_template.json", "mmhal/response_template.json"), ORIGIN)
PICTURES = Needed(("images/", "mmhal/images/", "./"), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the rows of the official response template; image files are named like the end of ``image_src``."""

    def sample(row: Row) -> Sample:
        name = PurePosixPath(text(FILE.names[0], row, "image_src", "image_path", "image_id")).name
        contents = row.get("image_content") or []
        return Sample(
            f"{row.number:03d}",
            text(FILE.names[0], row, "question"),
            {"image": [folder.media(PICTURES, name)]},
            text(FILE.names[0], row, "gt_answer"),
            {"type": row.get("question_type") or "", "contents": [contents] if isinstance(contents, str) else contents},
        )

    yield from folder.samples(FILE, sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    types = sorted({str(r.meta["type"]) for r in records if r.meta["type"]})
    each = [rated(t, [r for r in records if r.meta["type"] == t]) for t in types]
    return [rated("", records), *each, *reliance("", records, "image")]


TASK = Task(
    name="mmhal",
    version="1",
    paper="Sun et al., Aligning Large Multimodal Models with Factually Augmented RLHF, arXiv 2309.14525",
    about="open questions rated by a judge (--judge-url); hallucination rate = share rated below 3",
    modality="image",
    splits=("test",),
    files=lambda split: [FILE],
    load=load,
    score=score,
    media=f"{ORIGIN} (images.zip, or the image_src of each row), folder images",
    headline=("rating", "hallucination rate", "image reliance"),
    max_new_tokens=256,
    goal=("rating",),
)
