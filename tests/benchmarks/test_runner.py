"""The runner resumes after anything: errors, a growing limit, other shards, and kill -9 in the middle of a line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from limelight.benchmarks import rowlog
from limelight.benchmarks.engine import Local, Outcome
from limelight.benchmarks.results import find_runs, open_results
from limelight.benchmarks.runner import run, shard_from_environment
from limelight.benchmarks.scorers.grounding import reliance
from limelight.benchmarks.scorers.yes_no import yes_no
from limelight.benchmarks.task import Reply, Task
from limelight.errors import DataError, SettingError
from limelight.types import Sample
from tests.benchmarks.official import WRITERS
from tests.benchmarks.stored import read_results

ROOT = Path(__file__).resolve().parents[2]


def toy(n: int = 20, version: str = "1") -> Task:
    """Yes/no questions without files."""
    return Task(
        name="toy",
        version=version,
        paper="",
        about="",
        modality="image",
        splits=("coco/random", "coco/popular"),
        files=lambda split: [],
        load=lambda folder, split: (
            Sample(f"{split}/{k}", f"{k}?", {}, "no" if k % 2 else "yes", {"split": split}) for k in range(n)
        ),
        score=lambda records, scoring: [yes_no("", records, scoring.parser), *reliance("", records, "image")],
        parsers=("strict", "official"),
    )


def right(sample: Sample) -> str:
    return str(sample.target)


def go(out: Path, answer: Any = right, **options: Any) -> Any:
    return run(options.pop("task", toy()), answer, out, progress=False, **options)


def rows(out: Path, name: str = "rows.jsonl") -> list[dict[str, Any]]:
    return rowlog.read(out / name)


def test_a_run_and_what_it_leaves_behind(tmp_path: Path) -> None:
    results = go(tmp_path, settings={"model": "toy", "lr": 1e-3}, suffix=" Now.")
    assert results.metrics["accuracy"].value == 1.0
    assert [r["id"] for r in rows(tmp_path)] == [
        s + f"/{k}" for s in ("coco/random", "coco/popular") for k in range(20)
    ]
    first = rows(tmp_path)[0]
    assert first["prompt"] == "0? Now."
    assert first["answer"] == first["target"] == "yes"
    assert first["meta"]["seed"] >= 0
    stored = read_results(tmp_path)
    assert (stored["rows"], stored["total"], stored["complete"], stored["errors"]["count"]) == (40, 40, True, 0)
    assert stored["identity"]["settings"] == {"model": "toy", "lr": 1e-3}
    (session,) = stored["sessions"]
    assert {"limelight", "torch", "python", "numpy"} <= set(session["versions"])
    assert session["git"] is None or len(session["git"]) >= 40
    assert not stored["mixed_versions"]


def test_resuming_asks_only_what_is_missing(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(sample: Sample) -> str:
        if len(asked) == 7:
            raise KeyboardInterrupt
        asked.append(sample.id)
        return right(sample)

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, answer)
    assert len(rows(tmp_path)) == 7
    assert not (tmp_path / "results.json").exists()
    before = list(asked)
    results = go(tmp_path, lambda s: asked.append(s.id) or right(s))
    assert len(asked) == len(set(asked)) == 40
    assert asked[:7] == before
    assert results.run.complete
    assert len(results.to_json()["sessions"]) == 2
    again = go(tmp_path, lambda s: pytest.fail("asked again"))
    assert again.metrics == results.metrics


def test_errors_are_kept_counted_and_retried(tmp_path: Path) -> None:
    def answer(sample: Sample) -> str:
        if sample.id.endswith("/3"):
            raise ValueError("no picture")
        return right(sample)

    results = go(tmp_path, answer)
    stored = read_results(tmp_path)
    assert stored["errors"] == {"count": 2, "types": {"ValueError": 2}}
    assert (stored["rows"], stored["complete"]) == (38, False)
    assert results.metrics["accuracy"].n == 38  # a failed row is in no denominator
    error = results.run.errors["coco/random/3"]
    assert error["message"] == "no picture"
    assert "answer" in error["trace"]
    repaired = go(tmp_path)
    assert repaired.run.complete
    assert not repaired.run.errors
    assert len(rows(tmp_path)) == 42  # both failures stay in the log
    assert len(repaired.run.rows) == 40


def test_errors_in_a_row_stop_the_run(tmp_path: Path) -> None:
    def answer(sample: Sample) -> str:
        raise RuntimeError("CUDA is gone")

    with pytest.raises(DataError, match="5 answers in a row raised, last RuntimeError: CUDA is gone"):
        go(tmp_path, answer, max_errors_in_a_row=5)
    assert len(rows(tmp_path)) == 5
    assert go(tmp_path).run.complete


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": {"model": "b"}}, "settings.model: was 'a', now 'b'"),
        ({"settings": {"model": "a", "lr": 1}}, "settings.lr: was None, now 1"),
        ({"seed": 1}, "seed: was 0, now 1"),
        ({"suffix": "!"}, "suffix"),
        ({"splits": ["coco/random"]}, "splits"),
        ({"task": toy(version="2")}, "version: was '1', now '2'"),
        ({"shard": (0, 2)}, "shards: was 1, now 2"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    go(tmp_path, limit=1, settings={"model": "a"})
    before = rows(tmp_path)
    with pytest.raises(SettingError, match="different settings") as error:
        go(tmp_path, **{"limit": 1, "settings": {"model": "a"}, **change})
    assert says in str(error.value)
    assert "another --out" in str(error.value)
    assert rows(tmp_path) == before


def test_other_data_are_refused(tmp_path: Path) -> None:
    WRITERS["pope"](tmp_path / "data")
    options = {"data": tmp_path / "data", "splits": ["coco/random"], "task": "pope"}
    go(tmp_path / "run", **options)
    file = tmp_path / "data/coco/coco_pope_random.json"
    file.write_text("\n".join(file.read_text().splitlines()[:4]))
    with pytest.raises(SettingError, match="sha256"):
        go(tmp_path / "run", **options)


def test_a_limit_may_grow_but_not_shrink(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(sample: Sample) -> str:
        asked.append(sample.id)
        return right(sample)

    go(tmp_path, answer, limit=3)
    results = go(tmp_path, answer, limit=5)
    assert len(asked) == len(set(asked)) == 10
    assert [r.id for r in results.run.records][:6] == [*(f"coco/random/{k}" for k in range(5)), "coco/popular/0"]
    with pytest.raises(SettingError, match="5 rows per split, but the limit is now 4"):
        go(tmp_path, answer, limit=4)
    assert go(tmp_path, answer).run.total == 40
    with pytest.raises(SettingError, match="all rows per split"):
        go(tmp_path, answer, limit=5)


def test_shards_share_a_folder(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(sample: Sample) -> str:
        asked.append(sample.id)
        return right(sample)

    for i in range(3):
        results = go(tmp_path, answer, shard=(i, 3), limit=10)
        assert results.run.complete == (i == 2)
    assert len(asked) == len(set(asked)) == 20
    assert sorted(p.name for p in tmp_path.glob("rows*.jsonl")) == [f"rows.{i}of3.jsonl" for i in range(3)]
    sizes = [len(rows(tmp_path, f"rows.{i}of3.jsonl")) for i in range(3)]
    assert max(sizes) - min(sizes) <= 2
    for i in (2, 0, 1):
        go(tmp_path, answer, shard=(i, 3))
    assert len(asked) == len(set(asked)) == 40
    whole = go(tmp_path / "whole", limit=None)
    assert open_results(tmp_path, toy()).score("strict").metrics == whole.metrics
    assert [r.id for r in open_results(tmp_path).records] == [r.id for r in whole.run.records]
    with pytest.raises(SettingError, match="3/3"):
        go(tmp_path, shard=(3, 3))


def test_the_seed_of_a_row_is_the_same_in_any_shard_and_batch(tmp_path: Path) -> None:
    def drawn(samples: list[Sample]) -> list[str]:
        return [str(random.Random(s.meta["seed"]).random()) for s in samples]

    go(tmp_path / "a", lambda s: drawn([s])[0])
    go(tmp_path / "b", None, answer_many=drawn, batch_size=7)
    for i in range(2):
        go(tmp_path / "c", lambda s: drawn([s])[0], shard=(i, 2))
    said = [{r.id: r.answer for r in open_results(tmp_path / name).records} for name in "abc"]
    assert said[0] == said[1] == said[2]
    assert len(set(said[0].values())) == 40


def test_shards_from_the_environment() -> None:
    assert shard_from_environment({}) == (0, 1)
    assert shard_from_environment({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}) == (2, 4)
    with pytest.raises(SettingError, match="WORLD_SIZE=None"):
        shard_from_environment({"RANK": "2"})


def test_replies_carry_more_than_text(tmp_path: Path) -> None:
    results = go(tmp_path, lambda s: Reply("yes", {"shares": {"image": 0.25, "text": 0.75}}), limit=1)
    assert rows(tmp_path)[0]["reply"] == {"shares": {"image": 0.25, "text": 0.75}}
    assert open_results(tmp_path, toy()).score().metrics["image reliance"].value == 0.25
    assert results.run.records[0].meta["shares"]["image"] == 0.25


def test_a_judge_rates_once_and_again_for_new_answers(tmp_path: Path) -> None:
    WRITERS["mmhal"](tmp_path / "data")
    asked: list[str] = []

    class Judge:
        def __init__(self, name: str) -> None:
            self.name = name

        def settings(self) -> dict[str, Any]:
            return {"model": self.name}

        def __call__(self, record: Any) -> str:
            if len(asked) == 2 and self.name == "a":
                asked.append("fails")
                raise ConnectionError("gone")
            asked.append(record.id)
            return f"{record.meta['prompt']} Rating: 2"

    def again(judge: Any) -> Any:
        return run("mmhal", lambda s: "red", tmp_path / "run", data=tmp_path / "data", judge=judge, progress=False)

    with pytest.raises(DataError, match="ConnectionError: gone"):
        again(Judge("a"))
    assert again(Judge("a")).metrics["hallucination rate"].value == 1.0
    assert asked == ["000", "001", "fails", "003", "002"]
    with pytest.raises(SettingError, match="model: was 'a', now 'b'"):
        again(Judge("b"))


def test_an_engine_may_answer_twice_but_not_forget(tmp_path: Path) -> None:
    def twice(samples: Any) -> Any:
        for outcome in Local(right)(samples):
            yield outcome
            yield Outcome(outcome.id, Reply("other"), None, 0.0)

    results = go(tmp_path / "twice", None, engine=twice)
    assert len(rows(tmp_path / "twice")) == 40
    assert results.metrics["accuracy"].value == 1.0
    with pytest.raises(DataError, match="39 samples were not answered"):
        go(tmp_path / "lost", None, engine=lambda samples: Local(right)(samples[:1]))


def test_a_broken_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run"):
        open_results(tmp_path)
    with pytest.raises(DataError, match="no runs"):
        find_runs([tmp_path])
    go(tmp_path / "a", limit=1)
    (tmp_path / "a/run.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        open_results(tmp_path / "a")
    (tmp_path / "a/run.json").write_text('{"format": 0}')
    with pytest.raises(DataError, match="another version"):
        go(tmp_path / "a", limit=1)


def test_versions_that_changed_are_reported(tmp_path: Path) -> None:
    go(tmp_path, limit=1)
    manifest = json.loads((tmp_path / "run.json").read_text())
    manifest["sessions"][0]["versions"]["torch"] = "1.0"
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert go(tmp_path, limit=2).to_json()["mixed_versions"]


CHILD = """
import sys, time
from pathlib import Path
from tests.benchmarks.test_runner import toy
from limelight.benchmarks.runner import run

left = int(sys.argv[3])

def answer(sample):
    global left
    left -= 1
    if left < 0:
        time.sleep(600)  # until it is killed, however late that is
    with open(sys.argv[2], "a") as log:
        log.write(sample.id + "\\n")
    time.sleep(0.01)
    return str(sample.target) * 2000

run(toy(150), answer, sys.argv[1], progress=False)
"""


def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """The process is killed twice at random moments, the second time half a line is left as well."""
    out, asked = tmp_path / "run", tmp_path / "asked"
    rng = random.Random(0)
    for attempt in range(3):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        answers = "80" if attempt < 2 else "300"
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(asked), answers], cwd=ROOT, env=env)
        try:
            if attempt == 2:
                assert child.wait(timeout=120) == 0
                break
            have = len(rows(out)) if (out / "rows.jsonl").exists() else 0
            deadline = time.monotonic() + 120
            while not ((out / "rows.jsonl").exists() and len(rows(out)) >= have + 20):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.random() * 0.05)
        finally:
            child.kill()
            ended = child.wait(timeout=60)
        assert ended == -signal.SIGKILL
        kept = rows(out)
        if attempt == 1:
            with (out / "rows.jsonl").open("ab") as log:
                log.write(b'{"id": "coco/random/149", "answer": "yesyes')
            assert rows(out) == kept
    found = rows(out)
    assert len(found) == 300
    assert [r["id"] for r in found] == [f"{s}/{k}" for s in ("coco/random", "coco/popular") for k in range(150)]
    assert all(r["answer"] == str(r["target"]) * 2000 for r in found)
    # at most the one answer in flight at each kill was given twice, and kept once
    repeated = {i: n for i, n in Counter(asked.read_text().split()).items() if n > 1}
    assert len(repeated) <= 2
    assert all(n == 2 for n in repeated.values())
    assert len(read_results(out)["sessions"]) == 3
    assert read_results(out)["complete"]
