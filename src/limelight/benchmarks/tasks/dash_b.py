"""DASH-B: images that lead models to see an object that is not there, and as many images with the object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.scorers.recalls import recalls
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://github.com/YanNeu/DASH-B, folder images"
KINDS = {"neg": "no", "pos": "yes"}
QUESTION = "Can you see a {} in this image? Please answer only with yes or no."


def _list(kind: str) -> Needed:
    name = f"dash_benchmark_{kind}.json"
    return Needed((f"images/{name}", name, f"dash_b/images/{name}", f"DASH-B/images/{name}"), ORIGIN)


def _pictures(kind: str) -> Needed:
    return Needed((f"images/{kind}/", f"{kind}/", f"dash_b/images/{kind}/", f"DASH-B/images/{kind}/"), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield the images of both lists, ``{dataset: {object: [file names]}}``; files are ``neg/dataset/object/name``."""
    for kind, answer in KINDS.items():
        listed = folder.json(_list(kind))
        objects_of = listed.values() if isinstance(listed, dict) else [None]
        if not all(isinstance(v, dict) and all(isinstance(n, list) for n in v.values()) for v in objects_of):
            raise DataError(
                f"{_list(kind).names[0]} is not {{dataset: {{object: [names]}}}}", hint=f"get it from {ORIGIN}"
            )
        for dataset, objects in listed.items():
            for thing, names in objects.items():
                for name in names:
                    with folder.rejected.row(f"{folder.find(_list(kind))}, {dataset}/{thing}/{name}"):
                        if not isinstance(name, str) or not name.strip():
                            raise DataError(f"expected a file name, got {name!r}", hint="correct the list")
                        image = folder.media(_pictures(kind), f"{dataset}/{thing}/{name}")
                        meta = {"split": split, "cluster": thing, "object": thing}
                        key = f"{kind}/{dataset}/{thing}/{name}"
                        yield Sample(key, QUESTION.format(thing), {"image": [image]}, answer, meta)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Accuracy, TPR, TNR and their harmonic mean; images of one object are resampled together."""
    return [yes_no("", records, scoring.parser), recalls("", records, scoring.parser), *reliance("", records, "image")]


def _convert(row: Mapping[str, Any], number: int) -> Sample | None:
    thing = text("DASH-B", row, "object")
    meta = {"split": "test", "cluster": thing, "object": thing}
    gold = label(column("DASH-B", row, "answer"))
    question = text("DASH-B", row, "question")
    return Sample(text("DASH-B", row, "question_id"), question, {"image": [row["image"]]}, gold, meta)


TASK = Task(
    name="dash_b",
    version="1",
    paper="Augustin et al., DASH: Detection and Assessment of Systematic Hallucinations of VLMs, ICCV 2025 (arXiv 2503.23573)",
    about="yes/no questions about an object on images that systematically suggest it, and on images with it",
    modality="image",
    splits=("test",),
    files=lambda split: [_list("neg"), _list("pos")],
    load=load,
    score=score,
    parsers=("dash-b", "strict", "official", *COMMON),
    media="https://github.com/YanNeu/DASH-B (README: the images' archive), folder images, or --data hub",
    headline=("accuracy", "TPR", "TNR", "harmonic mean", "yes ratio", "image reliance"),
    max_new_tokens=16,
    hub={"test": HubTable("YanNeu/DASH-B", "test", _convert)},
    goal=("harmonic mean",),
)
