"""Decoding in processes of their own: whatever a file does there, it ends in a MediaError here.

    read("image", data)                       a picture, from bytes of anybody
    read("video", "film.mp4", frames=16)      a Clip
    read("audio", "talk.mp3", trusted=True)   (samples, rate), decoded in this process

The processes are started ahead and reused, and replaced when they end. A job has limits on processor seconds, seconds,
memory and the size of its result; it is killed when it exceeds one, or when nobody wants its result any more. Server, app
and benchmark readers decode this way; :func:`limelight.generate` reads the files it is handed in this process (as
``trusted=True`` does here).

The processes are plain subprocesses that talk over pipes, so that they can be started from daemonic processes (Ray's
actors, workers of a process pool) and need no guard in the main module. Where no process can be started at all, an error
says so; ``LIMELIGHT_DECODERS=0`` then decodes in this process, without limits, and another number sets how many there are.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
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
    """Limits that a whole file within a reader's own bounds (``options``) keeps with ease.

    Pictures: 2 s of processor time and 1 more every 16 million pixels that there may be. Sound: 5 s, and 1 a minute. Film:
    10 s and 1 every 50 million pixels that may be decoded, 600 s where that is not bounded.
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


@dataclass(frozen=True)
class _Plan:
    """A job, or what can be read at once because it is in memory already or trusted."""

    kind: str
    source: Any
    options: Mapping[str, Any]
    job: Job | None


def _plan(
    kind: str, source: Any, trusted: bool, group: str, limits: Limits | None, options: Mapping[str, Any]
) -> _Plan:
    if kind not in KINDS:
        raise SettingError(f"unknown kind of media {kind!r}", hint=", ".join(KINDS))
    if isinstance(source, Mapping) and source.get("array") is None:
        source = unwrapped(source)
    if isinstance(source, (str, Path)):
        source = existing(source).absolute()
    is_file = isinstance(source, (bytes, bytearray, memoryview, Path))
    if trusted or not is_file or os.environ.get(COUNT_VARIABLE) == "0":
        return _Plan(kind, source, options, None)
    limits = limits_for(kind, options) if limits is None else limits
    return _Plan(kind, source, options, Job(kind, source, dict(options), limits, group))


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
    """A picture, ``(samples, rate)`` or a :class:`Clip`, decoded in a process that may be killed.

    Args:
        kind: ``image``, ``audio`` or ``video``.
        source: a file, its bytes, or ``{"bytes": ..., "path": ...}``. What is in memory already (a PIL image, an array, a
            Clip) is read in this process.
        trusted: decode in this process, without limits on time and memory.
        group: groups take turns: who asked. ``timeout``: seconds in all, waiting for a free process counted.
        limits: of the job; by default :func:`limits_for` the options.
        options: of :func:`read_image`, :func:`read_samples` (and ``to_rate``), :func:`read_video`.

    Raises:
        MediaError: it cannot be read, exceeds a limit, or the time is up. See also the readers.
        UnsupportedError: no process can be started here.
    """
    plan = _plan(kind, source, trusted, group, limits, options)
    if plan.job is None:
        return decoder.decode(kind, plan.source, options)
    result = default_pool().run(plan.job, timeout)
    for note in result.warnings:
        warnings.warn(note, MediaWarning, stacklevel=2)
    return result.value


async def read_async(
    kind: str, source: Any, *, trusted: bool = False, group: str = "", limits: Limits | None = None, **options: Any
) -> Decoded:
    """:func:`read` for an event loop; the job is killed when the task is cancelled. Warnings come with the result."""
    plan = _plan(kind, source, trusted, group, limits, options)
    if plan.job is None:
        return await asyncio.to_thread(_trusted, plan)
    ticket = default_pool().submit(plan.job)
    try:
        result: Decoded = await asyncio.wrap_future(ticket.future)
    except CancelledError:
        raise asyncio.CancelledError from None
    finally:
        ticket.cancel()
        del ticket, plan, source  # an error's frames would hold them, and the ticket holds the error
    return result


def _trusted(plan: _Plan) -> Decoded:
    return Decoded(decoder.decode(plan.kind, plan.source, plan.options))


_lock = threading.Lock()
_pool: DecoderPool | None = None


def default_pool() -> DecoderPool:
    """The pool that everything in this process shares; made when first asked for, and anew in a forked process."""
    global _pool
    with _lock:
        if _pool is None or _pool.owner != os.getpid() or _pool.closed:
            _pool = DecoderPool(_count())
            atexit.register(_pool.close)
        return _pool


def start() -> None:
    """Start the decoding processes now, ahead of the first file; nothing where files are decoded in this process."""
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
