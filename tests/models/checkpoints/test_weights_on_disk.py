"""Folders of the cache are built whole or not at all, and a full disk is reported as one."""

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from limelight.errors import ModelError
from limelight.models.checkpoints.weights_on_disk import built_once
from limelight.user_cache_dir import user_cache_dir


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_built_once() -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "x").write_text("1")

    assert built_once(Path("a/b"), build) == built_once(Path("a/b"), build) == user_cache_dir() / "a" / "b"
    assert len(calls) == 1 and (user_cache_dir() / "a" / "b" / "x").read_text() == "1"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["system", "safetensors"],
)
def test_a_full_disk(error: Exception) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise error

    with pytest.raises(ModelError, match="No space left") as caught:
        built_once(Path("a/b"), build)
    assert "LIMELIGHT_CACHE" in caught.value.hint
    assert not list((user_cache_dir() / "a").iterdir())


def test_a_file_that_cannot_be_read_is_not_the_caches_fault() -> None:
    def build(folder: Path) -> None:
        (folder / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        built_once(Path("a/b"), build)


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write"):
        built_once(Path("a"), lambda _: None)
