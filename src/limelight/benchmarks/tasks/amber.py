"""AMBER: descriptions, and yes/no questions about existence, attributes and relations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.amber import Vocabulary, amber_score, generative
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.measure import Block, records_by_split
from limelight.benchmarks.scorers.yes_no import COMMON, label, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError, SettingError
from limelight.types import Record, Sample

ORIGIN = "https://github.com/junyangwang0410/AMBER, data"
QUERIES = Needed(("query_all.json", "query/query_all.json", "data/query/query_all.json"), f"{ORIGIN}/query")
ANNOTATIONS = Needed(("annotations.json", "data/annotations.json"), ORIGIN)
RELATION = Needed(("relation.json", "data/relation.json"), ORIGIN)
SAFE = Needed(("safe_words.txt", "data/safe_words.txt"), ORIGIN)
PICTURES = Needed(("image/", "images/", "AMBER/", "./"), ORIGIN)
KINDS = {
    "generative": "generative",
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute",
    "discriminative-attribute-number": "attribute",
    "discriminative-attribute-action": "attribute",
    "discriminative-relation": "relation",
    "relation": "relation",
}
SPLITS = ("generative", "existence", "attribute", "relation")


def load(folder: Folder, split: str) -> Iterator[Sample]:
    annotations = folder.rows(ANNOTATIONS)
    where = QUERIES.names[0]

    def sample(row: Mapping[str, Any]) -> Sample | None:
        number = row.get("id")
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= len(annotations):
            raise DataError(f"expected an id from 1 to {len(annotations)}, got {number!r}", hint="correct the row")
        truth = annotations[number - 1]
        if truth.get("id") != number or truth.get("type") not in KINDS:
            raise DataError(f"query {number} has no annotation of a known type", hint="use files from the same release")
        if KINDS[truth["type"]] != split:
            return None
        target = _named(truth) if split == "generative" else label(column(truth.where, truth, "truth"))
        image = text(where, row, "image")
        meta = {"split": split, "type": truth["type"], "cluster": image}
        return Sample(
            f"{split}/{number}", text(where, row, "query"), {"image": [folder.media(PICTURES, image)]}, target, meta
        )

    yield from folder.samples(QUERIES, sample)


def _named(truth: Row) -> dict[str, list[str]]:
    """Return the objects that are present, and those likely to be hallucinated."""
    found = {key: column(truth.where, truth, key) for key in ("truth", "hallu")}
    for key, names in found.items():
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise DataError(
                f"{truth.where}: {key} should be a list of objects, got {names!r}", hint="correct the annotation"
            )
    return found


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    descriptions = [r for r in records if r.meta["split"] == "generative"]
    questions = [r for r in records if r.meta["split"] != "generative"]
    blocks = []
    if descriptions:
        if scoring.assets is None:
            raise SettingError("AMBER needs relation.json and safe_words.txt", hint="score the folder of a run")
        related = json.loads((scoring.assets / "relation.json").read_text(encoding="utf-8"))
        words = Vocabulary.build(related, (scoring.assets / "safe_words.txt").read_text(encoding="utf-8"))
        blocks.append(generative(descriptions, words))
    if questions:
        blocks.append(yes_no("discriminative", questions, scoring.parser, positive="no"))
        by_split = records_by_split(questions, SPLITS[1:])
        blocks += [yes_no(split, rows, scoring.parser, positive="no") for split, rows in by_split.items()]
    if descriptions and questions:
        blocks.append(amber_score(descriptions, questions, words, scoring.parser))
    return [*blocks, *reliance("", records, "image")]


TASK = Task(
    name="amber",
    version="1",
    paper="Wang et al., An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation, arXiv 2311.07397",
    about="descriptions and yes/no questions; NO is the positive class",
    modality="image",
    splits=SPLITS,
    files=lambda split: [QUERIES, ANNOTATIONS, RELATION, SAFE],
    load=load,
    score=score,
    parsers=("exact", "strict", "official", *COMMON),
    media=f"{ORIGIN} (README: the image archive), folder image",
    headline=("generative/*", "discriminative/*", "AMBER score", "image reliance"),
    max_new_tokens=512,
    assets=(RELATION, SAFE),
    goal=("AMBER score",),
)
