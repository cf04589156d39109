"""The decoding process: reads a job, decodes it under limits, writes the result, and waits for the next.

Run by :mod:`limelight.media.worker`. It loads neither torch nor transformers, cannot write files, and is killed by the
system when a job exceeds its CPU time. Jobs and results are JSON and raw bytes: a process compromised by a hostile file
can send its parent wrong pixels, but no code.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from limelight.errors import LimelightError, MediaWarning, MissingExtraError

_OWN_FIELDS = ("to_rate", "codecs")


def decode(kind: str, source: Any, options: Mapping[str, Any]) -> Any:
    """Decode an image, ``(samples, rate)``, or a Clip; ``options`` are those of the reader, and ``to_rate`` for audio.

    Raises:
        LimelightError: see :func:`read_image`, :func:`read_samples`, :func:`read_video`.
    """
    given = {k: v for k, v in options.items() if k not in _OWN_FIELDS}
    if kind == "image":
        from limelight.media.image import read_image

        return read_image(source, **given)
    if kind == "audio":
        from limelight.media.audio import read_samples, resampled

        samples, rate = read_samples(source, **given)
        to_rate = options.get("to_rate")
        return (samples, rate) if to_rate is None else (resampled(samples, rate, to_rate), to_rate)
    from limelight.media.video import read_video

    codecs = options.get("codecs")
    return read_video(source, codecs=None if codecs is None else frozenset(codecs), **given)


def serialized(kind: str, value: Any) -> tuple[dict[str, Any], Iterator[Any]]:
    """Return the JSON header of a result and its bytes, image by image."""
    if kind == "image":
        return {"sizes": [value.size]}, iter([value.tobytes()])
    if kind == "audio":
        samples, rate = value
        return {"samples": len(samples), "rate": rate}, iter([memoryview(samples).cast("B")])
    about = {"seconds": value.seconds, "fps": value.fps, "duration": value.duration}
    return {"sizes": [f.size for f in value.frames], **about}, (f.tobytes() for f in value.frames)


def answer(header: Mapping[str, Any], data: bytes | None) -> tuple[dict[str, Any], Iterator[Any]]:
    """Run one job and return its reply; errors are also returned as replies."""
    source: Any = Path(header["path"]) if data is None else data
    nothing: Iterator[Any] = iter(())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MediaWarning)
        try:
            with limited(float(header["cpu"]), int(header["memory"])):
                head, parts = serialized(header["kind"], decode(header["kind"], source, header["options"]))
        except MemoryError:
            return {"error": "memory"}, nothing
        except MissingExtraError as error:
            return {"error": "missing", "message": error.message, "hint": error.hint}, nothing
        except LimelightError as error:
            kind = "setting" if isinstance(error, ValueError) else "media"
            return {"error": kind, "message": error.message, "hint": error.hint}, nothing
        except Exception as error:  # noqa: BLE001  # decoders raise any kind of exception on bad input
            return {"error": "crash", "message": f"{type(error).__name__}: {error}"[:500]}, nothing
    notes = [str(w.message)[:1000] for w in caught if issubclass(w.category, MediaWarning)]
    return {**head, "warnings": notes}, parts


@contextlib.contextmanager
def limited(cpu: float, memory: int) -> Iterator[None]:
    """Limit CPU seconds, after which the system kills this process, and additional bytes of memory (POSIX)."""
    timer = getattr(signal, "setitimer", None)
    try:
        if timer is not None:
            timer(signal.ITIMER_PROF, cpu)
        _bound_memory(memory)
        yield
    finally:
        _bound_memory(None)
        if timer is not None:
            timer(signal.ITIMER_PROF, 0)


def _bound_memory(more: int | None) -> None:
    try:
        import resource
    except ImportError:  # Windows: only the parent's time limit applies
        return
    pages = _pages()
    for which, held in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        hard = resource.getrlimit(which)[1]
        soft = hard if more is None or not held else held * resource.getpagesize() + more
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard) if soft != resource.RLIM_INFINITY else hard
        with contextlib.suppress(ValueError, OSError):  # the system does not support this limit
            resource.setrlimit(which, (soft, hard))


def _pages() -> Sequence[int]:
    """Read ``/proc/self/statm``: total, resident, shared, text, library, data; zeros where it does not exist."""
    try:
        return [int(n) for n in Path("/proc/self/statm").read_text().split()]
    except (OSError, ValueError):
        return [0] * 7


def harden() -> None:
    """Forbid writing files and core dumps, limit open files, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for which, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
            hard = resource.getrlimit(which)[1]
            resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)


def preload() -> None:
    """Import the packages that jobs need, where installed, so that the first job does not wait for it."""
    import limelight.media.audio
    import limelight.media.image
    import limelight.media.video  # noqa: F401

    for name in ("soundfile", "soxr", "av"):
        with contextlib.suppress(ImportError):
            __import__(name)
    from PIL import Image, ImageCms  # noqa: F401

    Image.init()


def read_exactly(stream: BinaryIO, size: int) -> bytearray:
    """Read ``size`` bytes; raises ``EOFError`` when the other side has closed."""
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        at += count
    return data


def send(stream: BinaryIO, header: Mapping[str, Any], parts: Iterator[Any]) -> None:
    """Write the header's length, the header, and the bytes whose size the header gives."""
    text = json.dumps(header, default=str).encode()
    _write(stream, struct.pack(">I", len(text)) + text)
    for part in parts:
        _write(stream, part)


def _write(stream: BinaryIO, data: Any) -> None:
    view = memoryview(data)
    while len(view):
        view = view[stream.write(view) :]


def main() -> None:
    """Read jobs from standard input until it closes; write results to standard output, reserved for them."""
    jobs = os.fdopen(os.dup(0), "rb", buffering=0)
    results = os.fdopen(os.dup(1), "wb", buffering=0)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    preload()
    harden()
    try:
        send(results, {"ready": os.getpid()}, iter(()))
        while True:
            header = json.loads(read_exactly(jobs, struct.unpack(">I", read_exactly(jobs, 4))[0]))
            data = None if header["size"] is None else bytes(read_exactly(jobs, header["size"]))
            reply, parts = answer(header, data)
            del data
            send(results, reply, parts)
            del parts
    except (EOFError, BrokenPipeError):
        sys.exit(0)
