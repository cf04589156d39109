"""One temporary folder per run of the app: removed on exit, or after a crash at the next start."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

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
        with FileLock(folder / LOCK):  # the system lets it go when the process ends, in whatever way
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_if_abandoned(folder: Path) -> None:
    with suppress(OSError, Timeout):
        if folder.is_symlink() or not (folder / LOCK).is_file() or folder.stat().st_uid != os.getuid():
            return
        with FileLock(folder / LOCK, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
