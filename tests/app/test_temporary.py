"""The app's temporary folders: gone at the end, and after a crash at the next start."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from limelight.app.temporary import PREFIX, temporary_folder

HOLDER = """
import sys, time
from limelight.app.temporary import temporary_folder
with temporary_folder() as folder:
    (folder / "page.html").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_it_goes_at_the_end_and_after_an_error(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), temporary_folder() as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "page.html").write_text("x")
        assert folder.stat().st_mode & 0o077 == 0
        raise KeyboardInterrupt
    assert list(home.iterdir()) == []


def test_folders_left_by_a_crash_are_removed_and_those_in_use_kept(home: Path) -> None:
    other = home / "somebody-elses"
    other.mkdir()
    (home / f"{PREFIX}link").symlink_to(other)
    holders = [subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path(h.stdout.readline().strip()) for h in holders if h.stdout]
        holders[0].kill()
        holders[0].wait(60)
        assert folders[0].exists()
        with temporary_folder():
            assert not folders[0].exists()
            assert (folders[1] / "page.html").exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(60)
            if holder.stdout:
                holder.stdout.close()
    assert other.exists()
    with temporary_folder():
        assert not folders[1].exists()
