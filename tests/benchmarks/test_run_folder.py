"""The folder of a run in bad weather: a full disk, a folder that cannot be written, rows and manifests that are damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from limelight.benchmarks import rowlog
from limelight.benchmarks.manifest import Start
from limelight.benchmarks.results import open_results
from limelight.benchmarks.runner import run
from limelight.errors import DataError, SettingError
from limelight.types import Sample
from tests.benchmarks.stored import read_results
from tests.benchmarks.test_runner import ROOT, go, right, rows, toy


def test_a_disk_that_is_full_costs_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(sample: Sample) -> str:
        asked.append(sample.id)
        return right(sample)

    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DataError, match="No space left") as error:
        go(tmp_path, answer)
    assert "free some space" in str(error.value)
    kept = [r["id"] for r in rows(tmp_path)]
    assert kept == asked[:-1]  # the one that could not be written left nothing behind
    assert (tmp_path / "rows.jsonl").read_bytes().endswith(b"\n")
    assert go(tmp_path, answer).run.complete
    assert sorted(asked) == sorted([r.id for r in open_results(tmp_path).records] + [asked[len(kept)]])


CHILD = """
import resource, sys
from tests.benchmarks.test_runner import toy
from limelight.benchmarks.runner import run
from limelight.errors import DataError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    run(toy(), lambda s: str(s.target) * 500, sys.argv[1], progress=False)
except DataError as error:
    print(error)
    sys.exit(3)
"""


def test_a_line_that_fits_in_part_is_taken_back(tmp_path: Path) -> None:
    """The file may not grow beyond 20 000 bytes: the kernel writes the part of the line that fits."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), "20000"], capture_output=True, text=True, cwd=ROOT, timeout=300)  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "rows.jsonl cannot be written: File too large" in done.stdout
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert content.endswith(b"\n")
    assert 0 < len(rows(tmp_path)) < 40
    again = run(toy(), lambda s: str(s.target) * 500, tmp_path, progress=False)
    assert again.run.complete
    assert (tmp_path / "rows.jsonl").read_bytes().startswith(content)


@pytest.mark.parametrize("where", ["file", "file/run", "/proc/limelight"])
def test_an_unwritable_folder_is_reported_before_any_answer(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written") as error:
        go(tmp_path / where, lambda s: pytest.fail("asked"))
    assert "--out" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(DataError, match="cannot be written"):
            go(tmp_path, lambda s: pytest.fail("asked"))
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("name", ["results.json", "run.json"])
def test_results_that_cannot_be_written_lose_no_answers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    if name == "run.json":
        with pytest.raises(DataError):
            go(tmp_path, lambda s: pytest.fail("asked"))
        return
    with pytest.raises(DataError, match=r"results\.json cannot be written") as error:
        go(tmp_path)
    assert "is safe" in str(error.value)
    assert len(rows(tmp_path)) == 40
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / name).rmdir()
    assert go(tmp_path, lambda s: pytest.fail("answered again")).run.complete


def edited(path: Path, change: Any) -> None:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    found[2] = change(found[2])
    path.write_text("".join(json.dumps(r) + "\n" for r in found))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: {k: v for k, v in r.items() if k != "place"}, "no place"),
        (lambda r: {k: v for k, v in r.items() if k not in ("answer", "meta")}, "no answer, meta"),
        (lambda r: {k: v for k, v in r.items() if k != "seconds"}, "no seconds"),
        (lambda r: {**r, "place": "first"}, "wrong type"),
        (lambda r: {**r, "place": [0]}, "wrong type"),
        (lambda r: {**r, "answer": 3}, "wrong type"),
        (lambda r: {**r, "meta": None}, "wrong type"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, change: Any, says: str) -> None:
    go(tmp_path, limit=2)
    edited(tmp_path / "rows.jsonl", change)
    for read in (lambda: open_results(tmp_path), lambda: go(tmp_path, lambda s: pytest.fail("asked"), limit=2)):
        with pytest.raises(DataError, match="line 3 of") as error:
            read()
        assert says in str(error.value)
        assert "answered again" in str(error.value)


def test_rows_without_their_manifest_are_never_adopted(tmp_path: Path) -> None:
    go(tmp_path, settings={"model": "a"})
    (tmp_path / "run.json").unlink()
    before = (tmp_path / "rows.jsonl").read_bytes()
    for settings in ({"model": "a"}, {"model": "b"}):
        with pytest.raises(SettingError, match=r"rows\.jsonl, but not their manifest run\.json"):
            go(tmp_path, lambda s: pytest.fail("asked"), settings=settings)
    with pytest.raises(SettingError, match=r"rows\.jsonl, but not their manifest run\.json"):
        go(tmp_path, shard=(0, 2))
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_a_shard_without_its_manifest_is_refused(tmp_path: Path) -> None:
    go(tmp_path, shard=(1, 2))
    (tmp_path / "run.1of2.json").rename(tmp_path / "run.0of2.json")
    with pytest.raises(SettingError, match=r"rows\.1of2\.jsonl, but not their manifest run\.1of2\.json"):
        go(tmp_path, shard=(0, 2))


def test_an_interrupted_start_leaves_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert go(tmp_path).run.complete


@pytest.mark.parametrize("tail", [b'{"id": "coco/random/1", "ans', b"\x00" * 64, b'{"id": "coco/random/1"}', b"\n"])
def test_a_truncated_last_line_is_answered_again(tmp_path: Path, tail: bytes) -> None:
    go(tmp_path, limit=2)
    log = tmp_path / "rows.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]) + tail)
    asked: list[str] = []
    assert go(tmp_path, lambda s: asked.append(s.id) or right(s), limit=2).run.complete
    assert asked == ["coco/popular/1"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 1}', '{"format": 1, "identity": [], "sessions": [], "total": 1}']
)
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    go(tmp_path, limit=1)
    (tmp_path / "run.json").write_text(content)
    for read in (lambda: open_results(tmp_path), lambda: go(tmp_path, lambda s: pytest.fail("asked"), limit=1)):
        with pytest.raises(DataError, match=r"run\.json"):
            read()


def test_a_run_that_began_meanwhile_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looked at an empty folder; the second finds the first one's manifest under the lock."""
    real, first = Start.check, [True]

    def check(self: Start, folder: Path) -> None:
        real(self, folder)
        if first[0]:
            first[0] = False
            go(tmp_path, settings={"model": "a"}, limit=1, shard=(0, 2))

    monkeypatch.setattr(Start, "check", check)
    with pytest.raises(SettingError, match=r"settings\.model: was 'a', now 'b'"):
        go(tmp_path, lambda s: pytest.fail("asked"), settings={"model": "b"}, limit=1, shard=(1, 2))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    def answer(sample: Sample) -> str:
        if sample.id == "coco/random/0":
            with pytest.raises(SettingError, match="another process"):
                go(tmp_path, lambda s: pytest.fail("asked"))
        return right(sample)

    assert go(tmp_path, answer).run.complete


def test_paths_in_any_script(tmp_path: Path) -> None:
    out = tmp_path / "läufe 走れ 🍋" / "été"
    results = go(out, lambda s: "Ja, näturlich 走れ", limit=1, settings={"model": "модель"})
    assert read_results(out)["identity"]["settings"] == {"model": "модель"}
    assert results.run.records[0].answer == "Ja, näturlich 走れ"
    assert go(out, lambda s: pytest.fail("asked"), limit=1, settings={"model": "модель"}).run.complete


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name in an old encoding holds bytes that are no UTF-8; they are kept all the same."""
    rowlog.write_json(tmp_path / "a.json", {"name": os.fsdecode(b"caf\xe9.jpg")})
    assert json.loads((tmp_path / "a.json").read_bytes())["name"] == os.fsdecode(b"caf\xe9.jpg")
