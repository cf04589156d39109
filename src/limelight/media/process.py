"""One decoding process, seen from the process that started it: jobs in, results out, and what its death means."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limelight.errors import MediaError, MissingExtraError, SettingError, UnsupportedError
from limelight.media.decoder import read_exactly, send
from limelight.types import Clip

START_SECONDS = 60.0
MAX_HEADER = 1 << 20
# what a decoder may know of this process's environment: no keys, no tokens
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
_SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_SMALLER = "make it smaller, or re-save it"


@dataclass(frozen=True)
class Limits:
    """Bounds of one job.

    Attributes:
        cpu_seconds: of processor time, all threads together; the system kills the process then.
        memory: bytes that decoding may take.
        output: bytes of the result.
        wall_seconds: in the process, waiting for input and output included; None: ten times ``cpu_seconds``, and 20.
        slow: whether it is known beforehand that it may take long.
    """

    cpu_seconds: float
    memory: int
    output: int
    wall_seconds: float | None = None
    slow: bool = False

    @property
    def wall(self) -> float:
        return 20 + 10 * self.cpu_seconds if self.wall_seconds is None else self.wall_seconds


@dataclass(frozen=True)
class Job:
    """What is to be decoded. ``source``: bytes, or an absolute path; ``group``: who asked."""

    kind: str
    source: Any
    options: dict[str, Any]
    limits: Limits
    group: str = ""

    @property
    def name(self) -> str:
        return self.source.name if isinstance(self.source, Path) else "the file"


@dataclass(frozen=True)
class Decoded:
    """A result, and what should be known of it."""

    value: Any
    warnings: tuple[str, ...] = ()


class DecodingProcess:
    """One decoding process. All of it but ``kill`` belongs to one thread.

    Raises:
        UnsupportedError: it cannot be started here.
    """

    def __init__(self) -> None:
        paths = [p or os.getcwd() for p in sys.path]
        code = f"import sys; sys.path[:] = {paths!r}; from limelight.media.decoder import main; main()"
        environment = {k: os.environ[k] for k in _KEPT if k in os.environ} | _SINGLE
        if not sys.executable:
            raise cannot_start("this Python does not know its own program")
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=environment, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise cannot_start(str(error)) from error
        self.cpu_before, self.niced = 0.0, False
        guard = threading.Timer(START_SECONDS, self.kill)
        guard.daemon = True
        guard.start()
        try:
            self._header()
        except EOFError:
            raise cannot_start(f"it ended with {self.close()} when it was started") from None
        finally:
            guard.cancel()

    def run(self, job: Job) -> Decoded:
        """The job's result.

        Raises:
            EOFError, OSError: the process died. MediaError and others: see :func:`_raised`.
        """
        data = None if isinstance(job.source, Path) else memoryview(job.source)
        header = {
            "kind": job.kind, "options": job.options, "cpu": job.limits.cpu_seconds, "memory": job.limits.memory,
            "size": None if data is None else data.nbytes, "path": str(job.source) if data is None else None,
        }  # fmt: skip
        self.cpu_before = self.cpu_seconds() or 0.0
        send(self.popen.stdin, header, iter(() if data is None else [data]))  # type: ignore[arg-type]
        reply = self._header()
        if "error" in reply:
            raise _raised(reply, job)
        return Decoded(self._value(job, reply), tuple(map(str, reply.get("warnings", ()))))

    def _header(self) -> dict[str, Any]:
        size = struct.unpack(">I", read_exactly(self.popen.stdout, 4))[0]  # type: ignore[arg-type]
        if size > MAX_HEADER:
            raise EOFError
        reply: dict[str, Any] = json.loads(read_exactly(self.popen.stdout, size))  # type: ignore[arg-type]
        return reply

    def _value(self, job: Job, reply: dict[str, Any]) -> Any:
        """The result's bytes; none is taken before its size was held against the job's limit."""
        if job.kind == "audio":
            count = int(reply["samples"])
            self._check_output(4 * count, job)
            return np.frombuffer(read_exactly(self.popen.stdout, 4 * count), np.float32), int(reply["rate"])  # type: ignore[arg-type]
        sizes = [(int(w), int(h)) for w, h in reply["sizes"]]
        self._check_output(3 * sum(w * h for w, h in sizes), job)
        if any(w < 1 or h < 1 for w, h in sizes) or not sizes:
            raise EOFError
        pictures = []
        for size in sizes:
            data = read_exactly(self.popen.stdout, 3 * size[0] * size[1])  # type: ignore[arg-type]
            pictures.append(Image.frombytes("RGB", size, data))
        if job.kind == "image":
            return pictures[0]
        return Clip(tuple(pictures), tuple(map(float, reply["seconds"])), reply["fps"], reply["duration"])

    def _check_output(self, size: int, job: Job) -> None:
        if not 0 <= size <= job.limits.output:
            self.kill()
            raise MediaError(f"{job.name} decodes to {size:,} bytes, the limit is {job.limits.output:,}", hint=_SMALLER)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self.popen.kill()

    def close(self) -> int:
        """End it and wait for it; its exit code."""
        self.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return self.popen.wait()

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def cpu_seconds(self) -> float | None:
        """Processor time so far; None where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return None

    def used(self, elapsed: float) -> float:
        """Processor seconds of the running job; ``elapsed`` where the system does not tell."""
        now = self.cpu_seconds()
        return elapsed if now is None else now - self.cpu_before

    def yield_to_others(self) -> None:
        """From now on it gets less of a busy processor than others; nothing raises it again, so it is replaced afterwards."""
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, self.popen.pid, 5)
            self.niced = True

    def ended(self) -> int:
        """The exit code of a process that has died, or is ended now."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(1.0)
        return self.close()

    def resident(self) -> int:
        """Bytes in memory; 0 where the system does not tell."""
        try:
            return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError, AttributeError):
            return 0


def _raised(reply: dict[str, Any], job: Job) -> Exception:
    message, hint = str(reply.get("message", "")), str(reply.get("hint", ""))
    if reply["error"] == "memory":
        return _too_much_memory(job)
    if reply["error"] == "missing":
        error = MissingExtraError("", "")
        error.message, error.hint = message, hint
        return error
    if reply["error"] == "setting":
        return SettingError(message, hint=hint)
    if reply["error"] == "media":
        return MediaError(message, hint=hint)
    return MediaError(f"{job.name} cannot be decoded: {message}", hint="get the file again, or re-save it")


def _too_much_memory(job: Job) -> MediaError:
    return MediaError(
        f"decoding {job.name} takes more than {job.limits.memory / 1e6:.0f} MB of memory, which is the limit",
        hint=_SMALLER,
    )


def cannot_start(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"no process for decoding can be started here: {why}",
        hint="set LIMELIGHT_DECODERS=0 to decode in this process, if you trust the files",
    )


def out_of_time(code: int) -> bool:
    """Whether the system ended a process because its processor time was up."""
    return hasattr(signal, "SIGPROF") and code == -signal.SIGPROF


def died(job: Job, code: int, killed: str) -> MediaError:
    """What to say of a job whose process ended with ``code``; ``killed``: why it was ended from here."""
    if killed == "memory":
        return _too_much_memory(job)
    if killed == "time":
        return MediaError(
            f"decoding {job.name} takes more than {job.limits.wall:g} s, which is the limit", hint=_SMALLER
        )
    if out_of_time(code):
        return MediaError(
            f"decoding {job.name} takes more than {job.limits.cpu_seconds:g} s of processor time, which is the limit",
            hint=_SMALLER,
        )
    return MediaError(
        f"the decoder ended on {job.name} with {code}: the file is corrupt, or made to break decoders",
        hint="get the file again, or re-save it",
    )
