"""HaloQuest: open questions with a false premise, without enough context, or visually hard, rated by a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limelight.benchmarks.data import Folder, Needed, Row, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.judge import judged
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.task import Scoring, Task
from limelight.types import Record, Sample

ORIGIN = "https://github.com/google/haloquest"
PICTURES = Needed(("images/", "haloquest/images/", "./"), ORIGIN)
SPLITS = ("eval", "train")
RUBRIC = """\
You decide whether a model's answer to a question about an image that you cannot see is correct, given correct answers. \
Interpret the answer in the light of the question.

If the question asks about something that is not in the image, then "yes", "no" or "nothing" is not correct, because it \
suggests that the thing is there: a correct answer says that it is absent. An answer that refuses, or says that it cannot \
help, is not correct. For a question about a number, only exactly the right number is correct.

Question: {question}

Correct answers: {reference}

Answer: {answer}

Explain briefly. Then end with one line: "Correct: yes" or "Correct: no".
"""


def _file(split: str) -> Needed:
    return Needed((f"haloquest-{split}.csv", f"haloquest/haloquest-{split}.csv"), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the rows of the official CSV; images are named ``image_name``, and their address is in ``url``."""
    name = _file(split).names[0]

    def sample(row: Row) -> Sample:
        image = text(name, row, "image_name")
        meta = {
            "split": split, "cluster": image, "contents": [], "url": str(row.get("url") or ""),
            "kind": text(name, row, "hallucination type"), "image_type": text(name, row, "image type"),
        }  # fmt: skip
        media = {"image": [folder.media(PICTURES, image)]}
        return Sample(
            f"{split}/{row.number}", text(name, row, "question"), media, text(name, row, "groundtruth responses"), meta
        )

    yield from folder.samples(_file(split), sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Share of answers that the judge finds correct: overall, for every kind of question and of image."""
    blocks = [judged("", records)]
    for key in ("kind", "image_type"):
        for value in sorted({str(r.meta[key]) for r in records}):
            blocks.append(judged(value, [r for r in records if r.meta[key] == value]))
    return [*blocks, *reliance("", records, "image")]


TASK = Task(
    name="haloquest",
    version="1",
    paper="Wang et al., HaloQuest: A Visual Hallucination Dataset for Advancing Multimodal Reasoning, ECCV 2024 (arXiv 2407.15680)",
    about="open questions, many with a false premise, rated right or wrong by a judge (--judge-url)",
    modality="image",
    splits=SPLITS,
    files=lambda split: [_file(split)],
    load=load,
    score=score,
    media=f"the url column of {ORIGIN}'s CSV files, folder images, named as in image_name",
    headline=("correct", "*/correct", "image reliance"),
    max_new_tokens=128,
    rubric=RUBRIC,
    goal=("correct",),
)
