"""Time and memory of one device, and ratios of runs that took turns."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu_shape import Size


class Clock:
    """Clock and memory of one device."""

    def __init__(self, size: Size) -> None:
        self.cuda = size.device == "cuda"

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def peak(self, into: dict[str, Any]) -> Iterator[None]:
        """Peak bytes of the allocator inside the block, beyond what was allocated before it."""
        if not self.cuda:
            yield
            into["peak_bytes"] = None
            return
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield
        into["peak_bytes"] = torch.cuda.max_memory_allocated() - before


def interval(mine: list[float], base: list[float]) -> dict[str, float]:
    """Ratio of medians over repeats that took turns, and the smallest and largest ratio of one pair."""
    pairs = [a / b for a, b in zip(mine, base, strict=True)]
    return {"ratio": statistics.median(pairs), "low": min(pairs), "high": max(pairs)}
