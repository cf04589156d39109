"""The parent's side of one decoding process: sending jobs, reading results, and interpreting its exit."""

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
# environment variables passed on to a decoder: no keys, no tokens
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
_SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_SMALLER = "make it smaller, or re-save it"


@dataclass(frozen=True)
class Limits:
    """Bounds of one job.

    Attributes:
        cpu_seconds: CPU time over all threads, after which the system kills the process.
        memory: bytes that decoding may allocate.
        output: bytes of the result.
        wall_seconds: wall time in the process, including input and output; None: 20 s plus ten times ``cpu_seconds``.
        slow: whether the job is expected to take long.
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
    """A decoding job. ``source``: bytes, or an absolute path; ``group``: identifies the requester."""

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
    """A decoded result and its warnings."""

    value: Any
    warnings: tuple[str, ...] = ()


class DecodingProcess:
    """One decoding process. Only ``kill`` may be called from other threads.

    Raises:
        UnsupportedError: it cannot be started here.
    """

    def __init__(self) -> None:
        paths = [p or os.getcwd() for p in sys.path]
        code = f"import sys; sys.path[:] = {paths!r}; from limelight.media.decoder import main; main()"
        environment = {k: os.environ[k] for k in _KEPT if k in os.environ} | _SINGLE
        if not sys.executable:
            raise cannot_start("sys.executable is not set")
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
            raise cannot_start(f"it exited with code {self.close()} at startup") from None
        finally:
            guard.cancel()

    def run(self, job: Job) -> Decoded:
        """Run a job and return its result.

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
        """Read the result; its declared size is checked against the job's limit before anything is read."""
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
        """Kill the process, wait for it, and return its exit code."""
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
        """Return the CPU time used so far; None where the system does not report it."""
        try:
            fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return None

    def used(self, elapsed: float) -> float:
        """Return the CPU seconds of the running job; ``elapsed`` where the system does not report them."""
        now = self.cpu_seconds()
        return elapsed if now is None else now - self.cpu_before

    def yield_to_others(self) -> None:
        """Lower the process's priority; this cannot be undone, so the process is replaced after the job."""
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, self.popen.pid, 5)
            self.niced = True

    def ended(self) -> int:
        """Return the exit code of a process that has died; kill it if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.popen.wait(1.0)
        return self.close()

    def resident(self) -> int:
        """Return the resident bytes; 0 where the system does not report them."""
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
    return MediaError(f"{job.name} cannot be decoded: {message}", hint="download the file again, or re-save it")


def _too_much_memory(job: Job) -> MediaError:
    return MediaError(
        f"decoding {job.name} exceeds the memory limit of {job.limits.memory / 1e6:.0f} MB",
        hint=_SMALLER,
    )


def cannot_start(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot start a decoding process: {why}",
        hint="set LIMELIGHT_DECODERS=0 to decode in this process, if you trust the files",
    )


def out_of_time(code: int) -> bool:
    """Whether the system killed a process because its CPU time was used up."""
    return hasattr(signal, "SIGPROF") and code == -signal.SIGPROF


def died(job: Job, code: int, killed: str) -> MediaError:
    """Return the error for a job whose process exited with ``code``; ``killed``: why the parent killed it, if it did."""
    if killed == "memory":
        return _too_much_memory(job)
    if killed == "time":
        return MediaError(f"decoding {job.name} exceeds the time limit of {job.limits.wall:g} s", hint=_SMALLER)
    if out_of_time(code):
        return MediaError(
            f"decoding {job.name} exceeds the limit of {job.limits.cpu_seconds:g} s of CPU time",
            hint=_SMALLER,
        )
    return MediaError(
        f"the decoder exited with code {code} on {job.name}: the file is corrupt or malicious",
        hint="download the file again, or re-save it",
    )
