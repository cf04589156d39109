"""One temporary folder per run of the app: removed on exit, or after a crash at the next start."""

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
    """Create a folder that only this user can access, after removing folders left by crashed runs."""
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
    """Lock a file until it is closed or the process exits; False: another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # not POSIX: running processes cannot be detected, so nothing is removed
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
