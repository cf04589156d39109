"""One temporary folder per run of the app: gone at its end, and after a crash at the next start."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PREFIX = "limelight-app-"
LOCK = "in-use"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that only this user can open. Folders of runs that have ended without cleaning up are removed first."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*"):
        _remove_if_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (folder / LOCK).open("w") as lock:
            _locked(lock)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> None:
    with suppress(OSError):
        if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
            return
        with (folder / LOCK).open("r+") as lock:
            if _locked(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(file: Any) -> bool:
    """Hold the lock until the file is closed, or the process ends in whatever way; False: another process holds it."""
    try:
        import fcntl
    except ImportError:  # not POSIX: nobody can tell who still lives, so nothing is removed
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
