"""An audit of a file: checked, resumed after kill -9, in batches, shards and on Ray, with tables and pages of its scores."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import limelight
from limelight.auditing import run as run_module
from limelight.auditing.audited import Audit
from limelight.auditing.run import Auditor, audit_file, audits_of
from limelight.benchmarks import rowlog
from limelight.benchmarks.engine import Local
from limelight.benchmarks.ray_engine import RayEngine
from limelight.errors import DataError, MissingExtraError, SettingError
from tests.auditing.test_forward import close
from tests.benchmarks.stored import read_results

EXAMPLES = Path(limelight.__file__).parent / "demo" / "vision" / "examples"
AUDITOR = Auditor("demo-vision")
ANSWERS = ["A picture of a cup and a dog.", "A picture of a frog.", "no", "yes", "A key and a key. There is no hat."]


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def made(folder: Path, count: int = 5) -> list[dict[str, Any]]:
    pictures = sorted(EXAMPLES.glob("*.png"))
    for p in pictures:
        shutil.copy(p, folder)
    return [
        {
            "id": f"r{i}", "image": pictures[i % len(pictures)].name, "prompt": "Describe the picture.",
            "answer": ANSWERS[i % len(ANSWERS)], "label": i,
        }
        for i in range(count)
    ]  # fmt: skip


def go(file: Path, out: Path, **more: Any) -> Any:
    return audit_file(file, more.pop("auditor", AUDITOR), out, **{"progress": False, "pages": 2, **more})


def scores(results: Any) -> dict[str, Audit]:
    return {a.row.name: a for a in audits_of(results.run)}


def alike(got: Any, want: Any) -> bool:
    """Equal, fractions to four digits: a log keeps six."""
    if isinstance(want, dict):
        return isinstance(got, dict) and got.keys() == want.keys() and all(alike(got[k], want[k]) for k in want)
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(alike, got, want))
    return bool(got == pytest.approx(want, rel=1e-3, abs=1e-4)) if isinstance(want, float) else bool(got == want)


def equal(got: Any, want: Any) -> None:
    """The same rows and, to the rounding of a batch, the same scores."""
    one, other = scores(got), scores(want)
    assert one.keys() == other.keys() and one
    for name in one:
        assert one[name].row.answer == other[name].row.answer
        close(one[name].steps, other[name].steps)


def test_a_run_and_what_it_leaves_behind(tmp_path: Path) -> None:
    rows = made(tmp_path)
    url = "data:image/png;base64," + base64.b64encode((tmp_path / rows[0]["image"]).read_bytes()).decode()
    shown = {"type": "image_url", "image_url": {"url": url}}
    talk = [
        {"role": "user", "content": [shown, {"type": "text", "text": "Is there a cup?"}]},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "Is there a dog?"},
        {"role": "assistant", "content": "yes"},
    ]
    file, out = write(tmp_path, [*rows, {"id": "talk", "messages": talk}]), tmp_path / "out"
    results = go(file, out, turns="all", formats=["csv", "parquet"])
    assert results.run.complete and len(results.run.rows) == 7
    assert results.metrics["words"].value == sum(len(a.words) for a in scores(results).values())
    assert 0 <= results.metrics["flagged words"].value <= 1
    assert read_results(out)["identity"]["settings"]["model"] == "demo-vision"
    # the same as in Python
    adapter = limelight.load("demo-vision")
    objects = [{**r, "image": tmp_path / r["image"]} for r in rows]
    direct = limelight.audit(adapter, [*objects, {"id": "talk", "messages": talk}], turns="all")
    for one in direct:
        kept = scores(results)[one.row.name]
        close(kept.steps, one.steps)
        assert alike(kept.to_json(), one.to_json())
        assert kept.generation.prompt.spans == one.generation.prompt.spans
        assert kept.generation.prompt.tokens == one.generation.prompt.tokens
    # tables
    for name, count in (
        ("answers", 7),
        ("words", sum(len(a.words) for a in direct)),
        ("tokens", sum(len(a.steps) for a in direct)),
        ("sentences", sum(len(a.sentences) for a in direct)),
    ):
        with (out / f"{name}.csv").open(encoding="utf-8") as stream:
            table = list(csv.DictReader(stream))
        assert len(table) == count
        assert {"id", "turn"} <= table[0].keys()
        pandas = pytest.importorskip("pandas")
        frame = pandas.read_parquet(out / f"{name}.parquet")
        assert list(frame.columns) == list(table[0]) and len(frame) == count
        if name != "sentences":
            read = pandas.read_csv(out / f"{name}.csv")
            assert read["logprob"].tolist() == pytest.approx(frame["logprob"].tolist())
    answers = pandas.read_parquet(out / "answers.parquet").set_index(["id", "turn"])
    assert answers.loc[("r3", 0), "label"] == 3
    assert answers.loc[("talk", 1), "contribution of earlier answers"] > 0
    # pages
    index = (out / "index.html").read_text()
    pages = sorted((out / "pages").glob("*.html"))
    assert len(pages) == 2 and all(f"pages/{p.name}" in index for p in pages)
    assert "The worst 2 of 7 answers" in index and "data:image/" in index
    assert "http" not in re.sub(r"data:[^\"]+", "", index).replace("http-equiv", "")
    packed = re.search(r'id="data">([^<]*)<', pages[0].read_text())
    assert packed is not None
    (case,) = json.loads(zlib.decompress(base64.b64decode(packed[1])))["cases"]
    assert case["media"]["pictures"][0]["src"].startswith("data:image/")
    assert [v["kind"] for v in case["views"]] == ["image"] and len(case["columns"][0]["words"]) > 3


def test_resuming_audits_what_is_missing_or_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(tmp_path)
    file, out = write(tmp_path, rows[:3]), tmp_path / "out"
    first = go(file, out)
    asked: list[str] = []
    own = Auditor.many

    def many(self: Auditor, samples: Any) -> Any:
        asked.extend(s.id for s in samples)
        return own(self, samples)

    monkeypatch.setattr(Auditor, "many", many)
    monkeypatch.setattr(Auditor, "__call__", lambda self, sample: self.many([sample])[0])
    equal(go(file, out), first)
    assert asked == []
    rows[1]["answer"] = "A picture of a hat."  # another answer
    rows[2]["label"] = "corrected"  # no matter of the scores
    shutil.copy(tmp_path / rows[3]["image"], tmp_path / rows[0]["image"])  # another picture
    again = go(write(tmp_path, rows), out)
    assert sorted(asked) == ["r0", "r1", "r3", "r4"]
    assert scores(again)["r1"].text == "A picture of a hat."
    with (out / "answers.csv").open() as stream:
        assert [r["label"] for r in csv.DictReader(stream)] == ["0", "1", "corrected", "3", "4"]
    with pytest.raises(SettingError, match="composite"):
        go(file, out, auditor=Auditor("demo-vision", "cp-lrp"))
    with pytest.raises(SettingError, match="turns"):
        go(file, out, turns="all")


def test_batches_and_shards_give_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, made(tmp_path))
    want = go(file, tmp_path / "one")
    equal(go(file, tmp_path / "batch", batch_size=3), want)
    go(file, tmp_path / "shards", shard=(0, 2))
    equal(go(file, tmp_path / "shards", shard=(1, 2), batch_size=2), want)
    with (tmp_path / "shards/answers.csv").open() as stream:
        assert [r["id"] for r in csv.DictReader(stream)] == ["r0", "r1", "r2", "r3", "r4"]


def test_bad_rows_are_named_with_file_and_line_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_loaded", lambda *a: pytest.fail("the model was loaded"))
    rows = made(tmp_path)
    file = write(
        tmp_path,
        [rows[0], "{no json", {**rows[1], "answer": ""}, "", {**rows[2], "image": "none.png"}, rows[3], rows[3], 5],
    )
    with pytest.raises(DataError, match="5 of 7 rows of audit are invalid") as caught:
        go(file, tmp_path / "out")
    said = caught.value.message
    assert f"{file}, line 2: is not valid JSON" in said
    assert f"{file}, line 3: expected the answer's text" in said
    assert f"{file}, line 5: its image {tmp_path / 'none.png'} does not exist" in said
    assert f"{file}, line 7: repeats the id 'r3', first in {file}, line 6" in said
    assert "line 8: is a int, not an object" in said
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    results = go(file, tmp_path / "out", skip_bad_rows=True)
    assert set(scores(results)) == {"r0", "r3"}
    assert read_results(tmp_path / "out")["bad_rows"]["count"] == 5


def test_a_row_that_the_model_refuses_costs_itself_alone(tmp_path: Path) -> None:
    rows = made(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    rows[1]["image"] = "broken.png"
    results = go(write(tmp_path, rows), tmp_path / "out", batch_size=3)
    assert set(scores(results)) == {"r0", "r2"}
    assert set(results.run.errors) == {"r1"}
    index = (tmp_path / "out/index.html").read_text()
    assert "1 rows that could not be audited" in index and "broken.png" in index


def test_settings_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, made(tmp_path, 1))
    for wrong in ({"turns": "x"}, {"formats": ["xls"]}, {"formats": []}, {"pages": -1}, {"batch_size": 0}):
        with pytest.raises(SettingError):
            go(file, tmp_path / "out", **wrong)
    with pytest.raises(DataError, match="there is no file"):
        go(tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(SettingError, match="no forward mode"):
        Auditor("demo-vision", "gradient")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'limelight\[audit\]'"):
        go(file, tmp_path / "out", formats=["parquet"])
    assert not (tmp_path / "out").exists()


def test_pages_with_maps(tmp_path: Path) -> None:
    file, out = write(tmp_path, made(tmp_path, 2)), tmp_path / "out"
    go(file, out, pages=1)
    (plain,) = (out / "pages").glob("*.html")
    without = plain.read_text()
    go(file, out, pages=1, maps=True)
    assert plain.exists() and len(plain.read_text()) > len(without)
    go(file, out, pages=0)
    assert not list((out / "pages").glob("*.html"))
    (tmp_path / "E-wrong-000.png").unlink()  # what was looked at is gone: the scores are shown without it
    for p in tmp_path.glob("*.png"):
        p.unlink()
    with pytest.raises(DataError, match="does not exist"):
        go(file, out, pages=1)


def test_other_file_kinds(tmp_path: Path) -> None:
    rows = made(tmp_path, 2)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "a.csv").write_text(text.getvalue())
    equal(go(tmp_path / "a.json", tmp_path / "json"), go(tmp_path / "a.csv", tmp_path / "csv"))


def test_kill_9_loses_nothing(tmp_path: Path) -> None:
    file, out = write(tmp_path, made(tmp_path, 30)), tmp_path / "out"
    command = [sys.executable, "-m", "limelight", "audit", str(file), "--model", "demo-vision", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--quiet"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = out / "rows.jsonl"
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = rowlog.read(log)
    assert len(done) >= 3 and not any(r.get("error") for r in done)
    finished = go(file, out)
    assert finished.run.complete and len(finished.run.rows) == 30
    assert rowlog.read(log)[: len(done)] == done
    equal(finished, go(file, tmp_path / "whole", batch_size=8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's own
def test_ray_workers_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'limelight[ray]')")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = write(tmp_path, made(tmp_path, 4))
    engine = RayEngine(partial(Local, AUDITOR, AUDITOR.many, 2), workers=2, cpus=0.5, batch_size=2)
    equal(go(file, tmp_path / "ray", engine=engine), go(file, tmp_path / "local"))
