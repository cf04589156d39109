"""Your own labelled file: its three kinds of rows, what is wrong with rows, and scores of answers with evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limelight.benchmarks.loading import load
from limelight.benchmarks.runner import run
from limelight.benchmarks.task import Reply, task
from limelight.errors import DataError
from limelight.types import Sample

ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "prompt": "Describe.", "objects": ["dog"]},
    {"image": "b.png", "prompt": "Describe.", "objects": ["ball", "dog"]},
    {"id": "q", "image": "a.png", "prompt": "Is there a cat?", "answer": "No"},
    {"image": "b.png", "prompt": "Is there a dog?", "answer": "yes"},
    {"audio": "c.wav", "prompt": "Transcribe.", "text": "good morning"},
    {"audio": "d.wav", "prompt": "Transcribe.", "text": ""},
]


def folder(path: Path, rows: list[dict[str, Any]] = ROWS, objects: str | None = "dog, puppy\nball\ncat") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if objects is not None:
        (path / "objects.txt").write_text(objects)
    for row in rows:
        for kind in ("image", "audio", "video"):
            if row.get(kind):
                (path / row[kind]).write_bytes(b"x")
    return path


def test_rows_of_three_kinds(tmp_path: Path) -> None:
    loaded = load(task("labelled"), folder(tmp_path))
    assert [(s.id, s.target) for s in loaded.samples] == [
        ("captions/0", ["dog"]), ("captions/1", ["ball", "dog"]), ("questions/q", "no"), ("questions/3", "yes"),
        ("transcripts/4", "good morning"), ("transcripts/5", ""),
    ]  # fmt: skip
    assert [next(iter(s.media)) for s in loaded.samples] == ["image"] * 4 + ["audio"] * 2
    assert loaded.samples[0].meta["cluster"] == "a.png"


def test_without_a_vocabulary_only_captions_are_missing(tmp_path: Path) -> None:
    loaded = load(task("labelled"), folder(tmp_path, objects=None))
    assert {s.meta["split"] for s in loaded.samples} == {"questions", "transcripts"}
    with pytest.raises(DataError, match=r"objects\.txt"):
        load(task("labelled"), tmp_path, splits=["captions"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Describe.", "objects": []}, "expected one of image, audio, video"),
        ({"image": "a.png", "audio": "c.wav", "prompt": "p", "objects": []}, "expected one of"),
        ({"image": "a.png", "prompt": "p", "objects": 3}, "expected a list of objects"),
        ({"image": "a.png", "objects": ["dog"]}, "no column prompt"),
        ({"image": "a.png", "prompt": "p", "objects": ["unicorn"]}, "unicorn"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        run("labelled", lambda s: "", tmp_path / "out", data=folder(tmp_path / "d", [*ROWS, row]), progress=False)


def evidence(text: str) -> dict[str, Any]:
    """One token a word; words that are there have the higher score."""
    words = text.split(" ")
    ends = [len(" ".join(words[: n + 1])) for n in range(len(words))]
    return {
        "text": text,
        "ends": ends,
        "scores": {"z": [float(w not in ("cat", "loud", "hello", "yes")) for w in words]},
    }


def test_scores_of_answers(tmp_path: Path) -> None:
    said = {
        "captions/0": "a puppy and a cat", "captions/1": "a ball and a cat", "questions/q": "yes", "questions/3": "yes",
        "transcripts/4": "good loud morning", "transcripts/5": "hello",
    }  # fmt: skip
    results = run(
        "labelled",
        lambda s: Reply(said[s.id], {"evidence": evidence(said[s.id])}),
        tmp_path / "out",
        data=folder(tmp_path / "data"),
        progress=False,
    )
    value = {k: m.value for k, m in results.metrics.items()}
    assert value["captions/CHAIR_i"] == 0.5
    assert value["questions/accuracy"] == 0.5
    assert value["transcripts/WER"] == 0.5
    assert value["transcripts/z/AUROC"] == 1.0
    assert value["questions/z/AUROC"] == 0.5  # both were answered alike


def test_answers_without_evidence_are_scored_too(tmp_path: Path) -> None:
    def answer(sample: Sample) -> str:
        return "a dog" if sample.id.startswith("captions") else "no"

    results = run("labelled", answer, tmp_path / "out", data=folder(tmp_path / "data"), progress=False)
    assert not any("AUROC" in k for k in results.metrics)
    assert results.metrics["captions/CHAIR_i"].value == 0.0
