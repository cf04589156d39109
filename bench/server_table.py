"""Checks of the results of bench.server_load, and their table in docs/server.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "bench" / "results" / "server_load.json", ROOT / "docs" / "server.md"
BEGIN, END = "<!-- python -m bench.server_load --table -->", "<!-- end of the table -->"


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [math.nan]
    return {"median": statistics.median(ordered), "95 %": ordered[int(len(ordered) * 0.95)], "max": ordered[-1]}


def at(values: list[float], index: int) -> float:
    return values[index] if len(values) > max(index, 0) else math.nan


def problems(found: dict[str, Any]) -> list[str]:
    """What a run must not show."""
    wrong = [
        f"{count} {name}" for name, count in found["counts"].items() if name.isupper() or name.startswith("CLIENT")
    ]
    if found["sigterm"]["answered"] != found["sigterm"]["accepted"]:
        wrong.append(f"SIGTERM lost answers: {found['sigterm']}")
    if found["memory_mb"]["peak"] > 1.5 * found["memory_mb"]["after 5 s"] + 100:
        wrong.append(f"memory grows: {found['memory_mb']}")
    if not found["answers_a_second"]:
        wrong.append("no answers")
    return wrong


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Build the Markdown table, with one column per run."""
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "clients, plus 4 that misbehave": lambda r: f"{r['clients']}",
        "seconds": lambda r: f"{r['seconds']:g}",
        "answers equal to their sequential ones": lambda r: str(r["counts"].get("answers equal to their sequential ones", 0)),
        "wrong or lost answers": lambda r: str(r["counts"].get("WRONG OR LOST ANSWERS", 0)),
        "answers per second": lambda r: f"{r['answers_a_second']:.1f}",
        "tokens per second": lambda r: f"{r['tokens_a_second']:.0f}",
        "answers decoded together, mean": lambda r: f"{r['mean_batch']:.1f}",
        "latency, median and 95 %": lambda r: f"{r['latency']['median']:.1f} s, {r['latency']['95 %']:.1f} s",
        "/health, median and longest": lambda r: f"{1e3 * r['health']['median']:.0f} ms, {1e3 * r['health']['max']:.0f} ms",
        "memory after 5 s, peak, end": lambda r: ", ".join(f"{v:.0f}" for v in r["memory_mb"].values()) + " MB",
        "clients that disconnected": lambda r: str(sum(v for k, v in r["counts"].items() if k.startswith("vanished"))),
        "malformed bodies rejected": lambda r: str(r["counts"].get("malformed bodies refused", 0)),
        "exceptions in the worker returned as 500": lambda r: str(r["counts"].get("worker exceptions told as 500", 0)),
        "SIGTERM: answered of 12 accepted": lambda r: f"{r['sigterm']['answered']}, exited after {r['sigterm']['seconds']:.1f} s",
    }  # fmt: skip
    lines = ["| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(shown(r) for r in runs.values()) + " |" for name, shown in rows.items()]
    return "\n".join(lines)


def written(runs: dict[str, dict[str, Any]]) -> None:
    """Put the table between the markers of docs/server.md."""
    head, found, rest = DOCS.read_text().partition(BEGIN)
    if not found or END not in rest:
        raise SystemExit(f"{DOCS} has no {BEGIN} ... {END}")
    DOCS.write_text(f"{head}{BEGIN}\n{table(runs)}\n{END}{rest.partition(END)[2]}")
