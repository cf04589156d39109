"""Jobs for decoder processes, and what tests observe of them."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limelight.media import worker
from limelight.media.pool import DecoderPool, Ticket
from limelight.media.process import Job, Limits

BOUNDED = {"max_pixels": 16_000_000}
AWAY = Limits(60.0, 10**9, 10**8)  # what must end for another reason than its time


def linux() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not tell a process's memory (no /proc)")


def picture(data: Any, limits: Limits | None = None, group: str = "", **options: Any) -> Job:
    options = {**BOUNDED, **options}
    return Job("image", data, options, limits or worker.limits_for("image", options), group)


def noise(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(out, "PNG")
    return out.getvalue()


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def running(pool: DecoderPool) -> list[Ticket]:
    return list(pool._running)


def pids(pool: DecoderPool) -> set[int]:
    return {p.popen.pid for p in list(pool._processes)}


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
