"""Processes of tests: bounded in time, with all that they start, and with files for what they say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def finished(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> subprocess.CompletedProcess[str]:
    """The command's end, and what it said. Beyond ``seconds`` it is killed with everything that it started.

    ``subprocess.run(capture_output=True, timeout=...)`` kills the command alone, and then waits for the end of pipes
    that its children may hold for ever.

    Raises:
        subprocess.TimeoutExpired: with what it had said by then.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=env, stdout=out, stderr=err, start_new_session=True
        )

        def said() -> tuple[str, str]:
            for file in (out, err):
                file.seek(0)
            return out.read().decode(errors="replace"), err.read().decode(errors="replace")

        try:
            code = started.wait(seconds)
        except subprocess.TimeoutExpired as late:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(30)
            raise subprocess.TimeoutExpired(late.cmd, late.timeout, *said()) from None
        return subprocess.CompletedProcess(command, code, *said())


def ended(process: subprocess.Popen[bytes], seconds: float = 30) -> int:
    """Ask a process to end; kill it where it has not within ``seconds``. Its exit status."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(30)


def free_port() -> int:
    """A port of this machine that nobody listens on, for commands that do not choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
