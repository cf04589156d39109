from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from limelight.benchmarks import manifest
from limelight.errors import SettingError


def test_differences() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {}}
    assert manifest.differences(old, old) == []
    new = {"a": 2, "b": {"c": [1, 3]}, "f": True}
    assert manifest.differences(old, new) == [("a", 1, 2), ("b.c", [1, 2], [1, 3]), ("e", {}, None), ("f", None, True)]


def test_part_names() -> None:
    assert manifest.part_name("rows", (0, 1), ".jsonl") == "rows.jsonl"
    assert manifest.part_name("run", (1, 4), ".json") == "run.1of4.json"


def test_compare_names_every_difference(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        manifest.compare(tmp_path / "x/run.json", {"a": 1, "b": {"c": "d"}}, {"a": 1, "b": {"c": "e"}})
    assert "b.c: was 'd', now 'e'" in str(error.value)
    assert "a:" not in str(error.value)


def test_git_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def repository(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "abc\n" if "rev-parse" in command else " M a.py\n")

    def none(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError("git")

    for fake, expected in ((repository, "abc+changes"), (none, None)):
        manifest.git_hash.cache_clear()
        monkeypatch.setattr(subprocess, "run", fake)
        assert manifest.git_hash() == expected
    manifest.git_hash.cache_clear()


def test_versions_name_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PACKAGES", ("numpy", "no-such-package"))
    manifest.versions.cache_clear()
    found = manifest.versions()
    manifest.versions.cache_clear()
    assert found["no-such-package"] is None
    assert found["numpy"]
