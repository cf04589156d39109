"""RePOPE: POPE's MSCOCO questions with corrected labels. The same answers are scored with both labels, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, block, mean_block, records_by_split, share
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.benchmarks.tasks.pope import COCO, ORIGIN, SAMPLINGS
from limelight.errors import DataError
from limelight.types import Record, Sample

CORRECTED = "https://github.com/YanNeu/RePOPE, folder annotations"
LABELS = ("POPE", "RePOPE")


def _new(split: str) -> Needed:
    name = f"coco_repope_{split}.json"
    return Needed((name, f"annotations/{name}", f"repope/{name}", f"repope/annotations/{name}"), CORRECTED)


def _old(split: str) -> Needed:
    name = f"coco_pope_{split}.json"
    return Needed((name, f"coco/{name}", f"pope/{name}", f"pope/coco/{name}"), ORIGIN, required=False)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield POPE's questions with POPE's label and, unless the question was removed as ambiguous, the corrected one.

    Without POPE's own file: RePOPE's questions, with the corrected label only. Questions are matched by image and text.
    """
    if not folder.locate(_old(split)):
        yield from folder.samples(_new(split), lambda row: _sample(folder, split, row, {"RePOPE": _label(split, row)}))
        return
    corrected: dict[tuple[str, str], str] = {}
    asked = set()
    for row in folder.each(_old(split)):
        with folder.rejected.row(row.where):
            asked.add(_key(split, row))
    for row in folder.each(_new(split)):
        with folder.rejected.row(row.where):
            if (key := _key(split, row)) not in asked:
                raise DataError(
                    f"{key[1]!r} about {key[0]} is not in {_old(split).names[0]}", hint="download both again"
                )
            corrected[key] = _label(split, row)

    def both(row: Row) -> Sample:
        key = _key(split, row)
        new = {"RePOPE": corrected[key]} if key in corrected else {}
        return _sample(folder, split, row, {"POPE": _label(split, row), **new})

    yield from folder.samples(_old(split), both)


def _key(split: str, row: Mapping[str, Any]) -> tuple[str, str]:
    return text(split, row, "image"), " ".join(text(split, row, "text", "question").lower().split())


def _label(split: str, row: Mapping[str, Any]) -> str:
    return label(column(split, row, "label", "answer"))


def _sample(folder: Folder, split: str, row: Row, labels: Mapping[str, str]) -> Sample:
    image = text(split, row, "image")
    return Sample(
        f"{split}/{text(split, row, 'question_id')}",
        text(split, row, "text", "question"),
        {"image": [folder.media(COCO, image)]},
        dict(labels),
        {"split": split, "cluster": image},
    )


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Every metric of yes/no questions with each label, and the share of labels that were changed or removed."""
    blocks: list[Block] = []
    of: dict[str, list[Block]] = {name: [] for name in LABELS}
    for split, mine in records_by_split(records, SAMPLINGS).items():
        for name in LABELS:
            if labelled := [replace(r, target=r.target[name]) for r in mine if name in r.target]:
                of[name].append(yes_no(f"{split}/{name}", labelled, scoring.parser))
                blocks.append(of[name][-1])
        if any("POPE" in r.target for r in mine):
            blocks.append(_changes(split, [r for r in mine if "POPE" in r.target]))
    blocks += [mean_block(f"mean/{name}", found) for name, found in of.items() if len(found) > 1]
    return [*blocks, *reliance("", records, "image")]


def _changes(split: str, records: Sequence[Record]) -> Block:
    rows = []
    for r in records:
        kept = "RePOPE" in r.target
        changed = kept and r.target["RePOPE"] != r.target["POPE"]
        rows.append((r.id, {"n": 1.0, "changed": float(changed), "removed": float(not kept)}))
    measures = [
        share("labels changed", "changed", "n", higher_is_better=None),
        share("questions removed", "removed", "n", higher_is_better=None),
    ]
    return block(split, rows, measures, [str(r.meta["cluster"]) for r in records], ("n", "changed", "removed"))


def _hub(split: str) -> HubTable:
    def convert(row: Mapping[str, Any], number: int) -> Sample | None:
        if column("RePOPE", row, "category") != split:
            return None
        meta = {"split": split, "cluster": text("RePOPE", row, "image_id")}
        question = text("RePOPE", row, "question")
        return Sample(f"{split}/{number}", question, {"image": [row["image"]]}, {"RePOPE": label(row["answer"])}, meta)

    return HubTable("MM-Hallu/RePOPE", "train", convert)


TASK = Task(
    name="repope",
    version="1",
    paper="Neuhaus and Hein, RePOPE: Impact of Annotation Errors on the POPE Benchmark, arXiv 2504.15707",
    about="POPE on MSCOCO with corrected labels, and with POPE's own beside them; yes is the positive class",
    modality="image",
    splits=SAMPLINGS,
    files=lambda split: [_new(split), _old(split)],
    load=load,
    score=score,
    parsers=("dash-b", "official", "vcd", "lmms-eval", "strict", *COMMON),
    media="MSCOCO val2014 (https://cocodataset.org, folder val2014)",
    headline=("*/accuracy", "*/F1", "*/yes ratio", "*/labels changed", "*/questions removed", "image reliance"),
    max_new_tokens=16,
    hub={split: _hub(split) for split in SAMPLINGS},
    goal=("*/RePOPE/accuracy",),
)
