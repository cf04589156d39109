"""The command line that the miniatures' evaluations share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def evaluate(
    report: Callable[[Path, Any, int, int], None], shipped: Path, about: str | None, questions: int = 500
) -> None:
    """Parse the arguments and print the report of a model on one thread.

    Args:
        report: prints the tables: ``(folder, split, questions per cell, captions per set)``.
        shipped: the folder of the model that is shipped, the default.
        about: the description for ``--help``.
        questions: per cell, by default.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", type=Path, default=shipped, help="the model's folder (the shipped one)")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("-n", type=int, default=questions, help=f"questions per cell ({questions})")
    parser.add_argument("--captions", type=int, default=200, help="captions per set (200)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report(given.model, given.split, given.n, given.captions)
