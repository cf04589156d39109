"""What a measurement ran on, and whether the machine was free for it; ratios with no more digits than their intervals support."""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def about(threads: int = 1) -> dict[str, Any]:
    """Processor, cores, threads, load, and versions, for a results file."""
    return {
        "processor": processor(), "cores": os.cpu_count(), "threads": threads, "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "torch": version("torch"), "transformers": version("transformers"),
    }  # fmt: skip


def processor() -> str:
    """The processor's name as Linux gives it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def add_busy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--busy", action="store_true", help="write results although the machine is busy")


def require_quiet(*, busy: bool) -> None:
    """Exit where more processes run than there are cores, unless told."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores and not busy:
        raise SystemExit(
            f"the load is {load:.1f} on {cores} cores: figures would tell of other programs too. Wait for them, or pass --busy"
        )


def ratio_of(mine: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median ratio of runs that took turns, and its 95 % interval by bootstrap over the pairs."""
    ratios = np.array(mine) / np.array(base)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


def digits(low: float, high: float, most: int = 2) -> int:
    """Decimals that an interval supports: the last one is worth at least a tenth of its width; negative: tens, hundreds."""
    width = high - low
    return most if width <= 10.0**-most else min(most, math.floor(-math.log10(width)) + 1)


def shown(ratio: float, low: float, high: float) -> str:
    """``1.3 [1.24, 1.38]``: the ratio with the digits that the interval supports, the interval with one more. Where rounding
    would put the ratio outside of its interval it has one more, too."""
    own = digits(low, high)
    finer = min(own + 1, 2)
    own = own if low <= round(ratio, own) <= high else finer
    return f"{_rounded(ratio, own)} [{_rounded(low, finer)}, {_rounded(high, finer)}]"


def _rounded(value: float, decimals: int) -> str:
    return f"{round(value, decimals):.{max(decimals, 0)}f}"
