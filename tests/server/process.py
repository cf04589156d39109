"""``limelight serve`` as people start it: a process of its own on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.running import ended


@contextmanager
def serving(
    model: str,
    log: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    seconds: float = 180,
    command: Sequence[str] = (sys.executable, "-m", "limelight", "serve"),
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address, once it listens; what it says goes into the file ``log``. It is gone at the end."""
    whole = [*command, model, "--port", "0", *arguments]
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    with log.open("wb") as sink:
        started = subprocess.Popen(whole, stdout=sink, stderr=sink, env={**os.environ, **fixed, **(environment or {})})
    try:
        end = time.monotonic() + seconds
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", told := log.read_text(errors="replace"))):
            assert started.poll() is None, f"the server ended: {told}"
            assert time.monotonic() < end, f"the server does not listen after {seconds} s: {told}"
            time.sleep(0.1)
        yield started, found[0]
    finally:
        ended(started)
