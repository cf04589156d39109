"""Decoding of untrusted media in separate processes: any failure there becomes a MediaError here.

    read("image", data)                       an image, from untrusted bytes
    read("video", "clip.mp4", frames=16)      a Clip
    read("audio", "talk.mp3", trusted=True)   (samples, rate), decoded in this process

The processes are started in advance, reused, and replaced when they exit. A job has limits on CPU time, wall time,
memory and output size; it is killed when it exceeds one, or when it is cancelled. Server, app and benchmark readers
decode this way; :func:`limelight.generate` reads its files in the calling process (like ``trusted=True`` here).

The processes are plain subprocesses that communicate over pipes, so that they can be started from daemonic processes
(Ray actors, workers of a process pool) and need no guard in the main module. Where no process can be started, an error
is raised; ``LIMELIGHT_DECODERS=0`` decodes in the calling process, without limits; another number sets the pool size.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from limelight.errors import MediaWarning, SettingError
from limelight.media import decoder
from limelight.media.image import MAX_PIXELS, MAX_SECONDS, existing, unwrapped
from limelight.media.pool import DecoderPool
from limelight.media.process import Decoded, Job, Limits

KINDS = ("image", "audio", "video")
COUNT_VARIABLE = "LIMELIGHT_DECODERS"
DECODERS = 4
MB = 1_000_000


def limits_for(kind: str, options: Mapping[str, Any]) -> Limits:
    """Return generous limits for a file within the reader's own bounds (``options``).

    Pictures: 2 s of CPU time plus 1 s per 16 million pixels allowed. Audio: 5 s plus 1 s per minute. Video:
    10 s plus 1 s per 50 million pixels that may be decoded, 600 s where that is not bounded.
    """
    pixels = int(options.get("max_pixels") or MAX_PIXELS)
    seconds = float(options.get("max_seconds") or MAX_SECONDS)
    if kind == "image":
        return Limits(2 + pixels / 16e6, 256 * MB + 24 * pixels, 3 * pixels)
    if kind == "audio":
        samples = int(options.get("max_samples") or seconds * 96_000)
        rate = int(options.get("to_rate") or 192_000)
        return Limits(5 + seconds / 60, 256 * MB + 12 * samples, round(4 * max(samples, seconds * rate)) + 4096)
    frames, total = int(options.get("frames") or 8), options.get("max_total_pixels")
    cpu = 600.0 if total is None else 10 + total / 50e6
    return Limits(cpu, 512 * MB + 12 * frames * min(pixels, 16 * MB), 3 * pixels * frames, slow=True)


def _plan(kind: str, source: Any, trusted: bool, group: str, limits: Limits | None, options: Mapping[str, Any]) -> Any:
    """Return a job, or the source itself if it is read in this process: already in memory, or trusted."""
    if kind not in KINDS:
        raise SettingError(f"unknown media type {kind!r}", hint=", ".join(KINDS))
    if isinstance(source, Mapping) and source.get("array") is None:
        source = unwrapped(source)
    if isinstance(source, (str, Path)):
        source = existing(source).absolute()
    is_file = isinstance(source, (bytes, bytearray, memoryview, Path))
    if trusted or not is_file or os.environ.get(COUNT_VARIABLE) == "0":
        return source
    return Job(kind, source, dict(options), limits_for(kind, options) if limits is None else limits, group)


def read(
    kind: str,
    source: Any,
    *,
    trusted: bool = False,
    group: str = "",
    timeout: float | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> Any:
    """Decode an image, ``(samples, rate)`` or a :class:`Clip` in a separate process that may be killed.

    Args:
        kind: ``image``, ``audio`` or ``video``.
        source: a file, its bytes, or ``{"bytes": ..., "path": ...}``. Objects already in memory (a PIL image, an array, a
            Clip) are read in this process.
        trusted: decode in this process, without limits on time and memory.
        group: identifies the requester; groups are served round-robin. ``timeout``: seconds in total, including the wait
            for a free process.
        limits: limits of the job; by default :func:`limits_for` the options.
        options: passed to :func:`read_image`, :func:`read_samples` (with ``to_rate``) or :func:`read_video`.

    Raises:
        MediaError: it cannot be read, exceeds a limit, or timed out. See also the readers.
        UnsupportedError: no process can be started here.
    """
    plan = _plan(kind, source, trusted, group, limits, options)
    if not isinstance(plan, Job):
        return decoder.decode(kind, plan, options)
    result = default_pool().run(plan, timeout)
    for note in result.warnings:
        warnings.warn(note, MediaWarning, stacklevel=2)
    return result.value


async def read_async(
    kind: str, source: Any, *, trusted: bool = False, group: str = "", limits: Limits | None = None, **options: Any
) -> Decoded:
    """Asynchronous :func:`read`; the job is killed when the task is cancelled. Warnings are returned with the result."""
    plan = _plan(kind, source, trusted, group, limits, options)
    if not isinstance(plan, Job):
        return Decoded(await asyncio.to_thread(decoder.decode, kind, plan, options))
    ticket = default_pool().submit(plan)
    try:
        result: Decoded = await asyncio.wrap_future(ticket.future)
    except CancelledError:
        raise asyncio.CancelledError from None
    finally:
        ticket.cancel()
        del ticket, plan, source  # the ticket holds the error, whose frames would reference them
    return result


_lock = threading.Lock()
_pool: DecoderPool | None = None


def default_pool() -> DecoderPool:
    """Return the pool shared by this process; created on first use, and again in a forked process."""
    global _pool
    with _lock:
        if _pool is None or _pool.owner != os.getpid() or _pool.closed:
            _pool = DecoderPool(_count())
            atexit.register(_pool.close)
        return _pool


def start() -> None:
    """Start the decoding processes before the first file; does nothing where files are decoded in this process."""
    if os.environ.get(COUNT_VARIABLE) != "0":
        default_pool().start()


def _count() -> int:
    given = os.environ.get(COUNT_VARIABLE, "").strip()
    if not given:
        return DECODERS
    if not given.isdigit() or not 1 <= int(given) <= 256:
        raise SettingError(
            f"{COUNT_VARIABLE} is {given!r}, expected a number of processes", hint="1 to 256; 0 decodes in this process"
        )
    return int(given)
