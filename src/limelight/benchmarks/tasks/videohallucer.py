"""VideoHallucer: pairs of a basic and a hallucinated yes/no question about videos; a pair counts if both are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.groups import all_correct
from limelight.benchmarks.scorers.measure import Block, mean_block, records_by_split
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = (
    "https://huggingface.co/datasets/bigai-nlco/VideoHallucer (code: https://github.com/patrick-tssn/VideoHallucer)"
)
SPLITS = ("object_relation", "temporal", "semantic_detail", "external_factual", "external_nonfactual", "fact_detect")
SUFFIX = "\nAnswer the question using 'yes' or 'no'."
KINDS = ("basic", "hallucination")
_BASES = ("", "videohallucer_datasets/", "videohallucer/", "havebench_datasets/")


def _file(split: str) -> Needed:
    return Needed(tuple(f"{b}{split}/{split}.json" for b in _BASES), ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield both questions of every pair; each names its video, in the subset's folder ``videos``."""
    name = _file(split).names[0]
    videos = Needed((*(f"{b}{split}/videos/" for b in _BASES), f"{split}/", "videos/", "./"), ORIGIN)

    def sample(row: Row, kind: str) -> Sample:
        asked = column(name, row, kind)
        if not isinstance(asked, dict):
            raise DataError(f"expected {kind} to be an object, got {asked!r}", hint=f"get the file from {ORIGIN}")
        video = text(name, asked, "video")
        meta = {"split": split, "kind": kind, "pair": f"{split}/{row.number}", "cluster": _clip(row), **_type(row)}
        prompt = text(name, asked, "question") + SUFFIX
        media = {"video": [folder.media(videos, video)]}
        return Sample(f"{split}/{row.number}/{kind}", prompt, media, label(column(name, asked, "answer")), meta)

    for row in folder.each(_file(split)):
        for kind in KINDS:
            with folder.rejected.row(f"{row.where}, {kind}"):
                yield sample(row, kind)


def _clip(row: Mapping[str, Any]) -> str:
    return str(column("the pair", row["basic"], "video"))


def _type(row: Mapping[str, Any]) -> dict[str, str]:
    return {"type": str(row["type"])} if row.get("type") else {}


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """For every subset: accuracy over pairs, accuracy on basic and on hallucinated questions; their means over the subsets,
    without ``fact_detect``, as in the official script."""
    parts: dict[str, list[Block]] = {"": [], **{kind: [] for kind in KINDS}}
    blocks: list[Block] = []
    for split, rows in records_by_split(records, SPLITS).items():
        pairs = all_correct(split, "accuracy", rows, _pair, scoring.parser, lambda r: str(r.meta["cluster"]))
        kinds = {
            k: yes_no(f"{split}/{k}", mine, scoring.parser)
            for k in KINDS
            if (mine := [r for r in rows if r.meta["kind"] == k])
        }
        blocks += [pairs, *kinds.values()]
        if split != "fact_detect":
            parts[""].append(pairs)
            for kind, found in kinds.items():
                parts[kind].append(found)
    blocks += [mean_block(f"mean/{k}" if k else "mean", found) for k, found in parts.items() if len(found) > 1]
    return [*blocks, *reliance("", records, "video")]


def _pair(record: Record) -> str | None:
    return str(record.meta["pair"])


TASK = Task(
    name="videohallucer",
    version="1",
    paper="Wang et al., VideoHallucer: Evaluating Intrinsic and Extrinsic Hallucinations in Large Video-Language Models, arXiv 2406.16338",
    about="pairs of a basic and a hallucinated yes/no question about videos; accuracy counts pairs with both right",
    modality="video",
    splits=SPLITS,
    files=lambda split: [_file(split)],
    load=load,
    score=score,
    parsers=("videohallucer", "strict", "official", *COMMON),
    media=f"{ORIGIN}, folders object_relation/videos, ...",
    headline=("*/accuracy", "mean/*", "video reliance"),
    max_new_tokens=32,
    goal=("*/accuracy",),
)
