"""HallusionBench: yes/no questions about figures, edited figures, and without a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, column, text
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.groups import all_correct
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import HubTable, Scoring, Task
from limelight.types import Record, Sample

ORIGIN = "https://github.com/tianyi-lab/HallusionBench"
FILE = Needed(("HallusionBench.json", "hallusionbench/HallusionBench.json"), ORIGIN)
PICTURES = Needed(("hallusion_bench/", "images/", "./"), ORIGIN)
_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input")


def _sample(row: Mapping[str, Any], media: Mapping[str, Sequence[Any]]) -> Sample:
    meta = {k: text(FILE.names[0], row, k) for k in _KEYS}
    meta["cluster"] = "/".join(meta[k] for k in ("category", "subcategory", "set_id"))
    name = "/".join(meta[k] for k in _KEYS[:5])
    return Sample(
        name, text(FILE.names[0], row, "question"), media, label(column(FILE.names[0], row, "gt_answer")), meta
    )


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield all rows; the 178 with visual_input 0 have no image."""

    def sample(row: Mapping[str, Any]) -> Sample:
        name = row.get("filename")
        return _sample(row, {"image": [folder.media(PICTURES, str(name).removeprefix("./"))]} if name else {})

    yield from folder.samples(FILE, sample)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Compute aAcc over questions, qAcc over each question on all its figures, fAcc over all questions of each figure."""

    def cluster(r: Record) -> str:
        return str(r.meta["cluster"])

    def question(r: Record) -> str | None:
        return f"{r.meta['cluster']}/{r.meta['question_id']}"

    def figure(r: Record) -> str | None:
        without = r.meta["category"] == "VS" and r.meta["figure_id"] == "0"
        return None if without else f"{r.meta['cluster']}/{r.meta['figure_id']}"

    if not records:
        return []
    # questions on original figures (or none), and on edited ones: in VS, figure 0 is none and figure 1 the original
    easy = [r for r in records if r.meta["visual_input"] != "2"]
    hard = [r for r in records if r.meta["visual_input"] == "2"]
    parts = {"easy": easy, "hard": hard}
    return [
        all_correct("", "aAcc", records, lambda r: r.id, scoring.parser, cluster),
        all_correct("", "qAcc", records, question, scoring.parser, cluster),
        all_correct("", "fAcc", records, figure, scoring.parser, cluster),
        yes_no("", records, scoring.parser),
        *(yes_no(name, rows, scoring.parser) for name, rows in parts.items() if rows),
        *reliance("", records, "image"),
    ]


TASK = Task(
    name="hallusionbench",
    version="2",
    paper="Guan et al., HallusionBench, CVPR 2024 (arXiv 2310.14566)",
    about="aAcc, qAcc, fAcc; answers are parsed here, by GPT-4 in the official script",
    modality="image",
    splits=("all",),
    files=lambda split: [FILE],
    load=load,
    score=score,
    parsers=("strict", "official", *COMMON),
    media=f"{ORIGIN} (README: hallusion_bench.zip), folder hallusion_bench",
    headline=("aAcc", "qAcc", "fAcc", "yes ratio", "image reliance"),
    max_new_tokens=128,
    hub={
        "all": HubTable(
            "lmms-lab/HallusionBench", "image", lambda row, number: _sample(row, {"image": [row["image"]]})
        ),
    },
    goal=("aAcc",),
)
