"""Estimates of benchmark time on one GPU from stated costs per token: ``python -m limelight.benchmarks.cost``.

An estimate for a 7B model and a prompt of 606 positions (LLaVA-1.5: 576 image tokens and a question), bf16, batch 1:

    seconds = rows * (prefill TFLOP / R + tokens * max(token TFLOP / R, weight reads * 14 GB / W))

R is the rate implied by the paper's reported speed: 242.6 TFLOP per token (its loop, counted) at 0.32 tokens/s, 77.6
TFLOP/s. W is the memory bandwidth of a 40 GB A100, 1.555 TB/s. FLOPs were counted; weight reads of the cached modes are
their CPU time per token relative to a plain cached token. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

PAPER_TFLOP, PAPER_SPEED = 242.6, 0.32
RATE = PAPER_TFLOP * PAPER_SPEED  # TFLOP/s
WEIGHTS, BANDWIDTH = 14.0, 1555.0  # GB, GB/s


@dataclass(frozen=True)
class Cost:
    """A decoding method: TFLOP for the prompt and per token, and weight reads per token."""

    name: str
    prompt: float
    token: float
    reads: float

    def hours(self, rows: int, tokens: float) -> float:
        """Return the expected hours for ``rows`` answers of ``tokens`` tokens."""
        each = max(self.token / RATE, self.reads * WEIGHTS / BANDWIDTH)
        return rows * (self.prompt / RATE + tokens * each) / 3600


METHODS = (
    Cost("greedy, cached", 8.0, 0.0135, 1.0),
    Cost("meter, relevance-contrastive", 16.2, 0.027, 1.4),
    Cost("lime-cached, 1 update", 16.2, 0.069, 4.8),
    Cost("lime-cached, 6 updates", 16.2, 0.351, 22.0),
    Cost("lime (exact)", 0.0, 206.0, 1.0),
    Cost("the paper's loop", 0.0, PAPER_TFLOP, 1.0),
)


@dataclass(frozen=True)
class Job:
    """A run of the paper: number of answers, and tokens per answer (including the end of sequence)."""

    name: str
    rows: int
    tokens: float


JOBS = (
    Job("POPE, one split", 3000, 2),
    Job("POPE, three splits", 9000, 2),
    Job("CHAIR, 500 captions", 500, 110),
    Job("AIR-Bench foundation, 19k questions", 19000, 3),
    Job("1000 yes/no questions about audio", 1000, 10),
    Job("Grounding, 1500 questions about objects", 1500, 2),
    Job("Cost, 20 captions", 20, 110),
)


def command_hours(job: Job) -> float:
    """Return the expected hours of ``--strategies greedy,sampled,lime``; sampling costs the same as greedy."""
    by_name = {m.name: m.hours(job.rows, job.tokens) for m in METHODS}
    return 2 * by_name["greedy, cached"] + by_name["lime (exact)"]


def table() -> str:
    """Return the expected GPU hours as a Markdown table."""
    head = [
        "| run | answers x tokens |",
        *(f" {m.name} |" for m in METHODS),
        " greedy, sampled and lime (the commands) |",
    ]
    rule = "|" + " --- |" * (len(METHODS) + 3)
    rows = [
        f"| {j.name} | {j.rows} x {j.tokens:g} |"
        + "".join(f" {_hours(m.hours(j.rows, j.tokens))} |" for m in METHODS)
        + f" {_hours(command_hours(j))} |"
        for j in JOBS
    ]
    return "\n".join(["".join(head), rule, *rows])


def _hours(value: float) -> str:
    return "< 1 min" if value < 1 / 60 else f"{60 * value:.0f} min" if value < 1 else f"{value:.1f} h"


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
