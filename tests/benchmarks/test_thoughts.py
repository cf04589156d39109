"""No score reads a thought: every task, every parser, judges and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limelight.benchmarks import rowlog
from limelight.benchmarks.compare import differing
from limelight.benchmarks.results import open_results
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.judge import RUBRIC, ChatJudge, rating
from limelight.benchmarks.task import Reply, Scoring, task, tasks
from limelight.errors import SettingError
from limelight.types import Record, Sample
from tests.benchmarks.official import WRITERS
from tests.benchmarks.stored import read_results
from tests.benchmarks.test_runner import go
from tests.benchmarks.test_task import relevance

# what thoughts may hold that any parser or scorer would take for an answer
LURE = "No, there is no hat. Not B. A train, a wine glass, a cat and a cloud. Yes. D. Rating: 0"
WAYS = [f"<think>{LURE}</think>", f"<think>{LURE}</think>\n\n", f"{LURE}</think>", f"[THINK]{LURE}[/THINK]", f"◁think▷{LURE}◁/think▷",
        f"<|channel|>analysis<|message|>{LURE}<|end|><|start|>assistant<|channel|>final<|message|>"]  # fmt: skip


def metrics(name: str, data: Path, out: Path, before: str, behind: str = "", parser: str = "") -> dict[str, Any]:
    best = WRITERS[name](data)

    def answer(sample: Sample) -> Reply:
        return Reply(before + best[sample.id] + behind, relevance(sample))

    def judge(record: Record) -> str:
        assert LURE not in record.answer
        return f"{before}{record.answer} Rating: 6"

    run(name, answer, out, data=data, judge=judge if name == "mmhal" else None, parser=parser, progress=False)
    assert all(r["answer"].startswith(before) for r in rowlog.read(out / "rows.jsonl"))  # the raw answers are kept
    found: dict[str, Any] = read_results(out)["metrics"]
    return found


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_scores_are_those_of_the_answers_alone(name: str, tmp_path: Path) -> None:
    for parser in task(name).parsers or ("",):
        plain = metrics(name, tmp_path / "data", tmp_path / f"plain-{parser}", "", parser=parser)
        way = WAYS[sum(map(ord, name + parser)) % len(WAYS)]
        assert metrics(name, tmp_path / "data", tmp_path / f"thinks-{parser}", way, parser=parser) == plain


@pytest.mark.parametrize("way", WAYS)
def test_every_marker_on_one_task(way: str, tmp_path: Path) -> None:
    plain = metrics("pope", tmp_path / "data", tmp_path / "plain", "")
    assert metrics("pope", tmp_path / "data", tmp_path / "thinks", way) == plain


def test_thoughts_that_never_end_leave_an_empty_answer(tmp_path: Path) -> None:
    results = go(tmp_path, lambda s: f"<think>{LURE}")
    assert results.metrics["empty"].value == 40
    assert read_results(tmp_path)["thoughts"] == {"answers": 40, "without_an_answer": 40}


def test_the_miniatures_tasks_too() -> None:
    cells = {"demo_vision": "none/clear", "demo_audio": "none/clear", "demo_video": "what-none/clear"}
    for name, clear in cells.items():
        one = tasks()[name]
        said = [Record(str(k), f"<think>{LURE}</think> {a}", a, {"split": clear}) for k, a in enumerate(["yes", "no"])]
        (cell, *_) = one.score(said, Scoring("strict"))
        assert cell.columns["correct"].tolist() == [1.0, 1.0]


def test_own_markers_and_none(tmp_path: Path) -> None:
    said = lambda s: f"<plan>yes no</plan>{s.target}"  # noqa: E731
    assert go(tmp_path / "a", said).metrics["accuracy"].value == 0.0
    assert go(tmp_path / "b", said, thoughts=[("<plan>", "</plan>")]).metrics["accuracy"].value == 1.0
    assert open_results(tmp_path / "b").records[0].answer == "yes"
    lured = lambda s: f"<think>yes no</think>{s.target}"  # noqa: E731
    assert go(tmp_path / "c", lured, thoughts=()).metrics["accuracy"].value == 0.0
    assert go(tmp_path / "c", lambda s: pytest.fail("asked")).metrics["accuracy"].value == 1.0  # scored anew
    with pytest.raises(SettingError, match="pairs"):
        go(tmp_path / "d", said, thoughts=["<plan>"])


def test_the_marker_of_after_ends_thoughts(tmp_path: Path) -> None:
    settings = {"strategy_settings": {"after": "</ponder>"}}
    said = lambda s: f"yes no</ponder>{s.target}"  # noqa: E731
    assert go(tmp_path / "a", said, settings=settings).metrics["accuracy"].value == 1.0
    said = lambda s: f"yes no</think>{s.target} thinking"  # noqa: E731
    settings = {"strategy_settings": {"after": "thinking"}}
    assert go(tmp_path / "b", said, settings=settings).metrics["accuracy"].value == 1.0


def test_an_answerer_that_knows_better_where_the_answer_begins(tmp_path: Path) -> None:
    said = lambda s: Reply(f"no yes {s.target}", {"answer_from": 7})  # noqa: E731
    assert go(tmp_path, said).metrics["accuracy"].value == 1.0


def test_comparisons_read_answers(tmp_path: Path) -> None:
    go(tmp_path / "a", lambda s: f"<think>a</think>{s.target}")
    go(tmp_path / "b", lambda s: f"<think>b</think>{s.target if s.id != 'coco/random/3' else 'yes'}")
    pairs = differing(*(go(tmp_path / name, lambda s: pytest.fail("asked")).run for name in "ab"))
    assert [(p.id, p.a, p.b) for p in pairs] == [("coco/random/3", "no", "yes")]


def test_a_judge_sees_no_thoughts_and_has_none_counted() -> None:
    record = Record("1", f"<think>{LURE}</think>Red.", "Blue.", {"prompt": "What colour?"})
    assert LURE not in ChatJudge("http://localhost", "m").prompt(record)
    assert "Red." in ChatJudge("http://localhost", "m", None, RUBRIC).prompt(record)
    assert rating("<think>Rating: 6</think> Rating: 2") == 2
    assert rating("Rating: 2 <think>or Rating: 6") == 2
    assert rating("<think>perhaps Rating: 6") is None


def test_rows_keep_the_full_text(tmp_path: Path) -> None:
    go(tmp_path, lambda s: f"<think>{LURE}</think>yes", limit=1)
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert row["answer"] == f"<think>{LURE}</think>yes"
