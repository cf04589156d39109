"""Start-up: processor time of the command line's help, of the imports, and of a miniature's first answer.

    python -m bench.start            five runs each, written to bench/results/start.json
    python -m bench.start --table    print the committed table, run nothing

Each run is a process of its own. Time is user and system time of that process; files are in the page cache after a first run that is
not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from bench.machine import about, add_busy, require_quiet

RESULTS = Path(__file__).parent / "results" / "start.json"
RUNS = 5
ANSWER = """
import limelight
adapter = limelight.load("demo-vision")
question = "Is there a hat in the picture?"
limelight.generate(adapter, question, media=limelight.example("hat"), max_new_tokens=4{more})
"""
COMMANDS: dict[str, list[str]] = {
    "`python -c 'import torch'`, for comparison": ["-c", "import torch"],
    "`python -c 'import transformers'`, for comparison": ["-c", "import transformers"],
    "`import limelight`": ["-c", "import limelight"],
    "`limelight --help`": ["-m", "limelight", "--help"],
    "`limelight generate --help`": ["-m", "limelight", "generate", "--help"],
    "the miniature's first answer, with relevance": ["-c", ANSWER.format(more="")],
    "the miniature's first answer, `relevance=False`": ["-c", ANSWER.format(more=", relevance=False")],
}


def seconds(arguments: list[str]) -> float:
    """Processor time of one Python process, in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = Popen([sys.executable, *arguments], stdout=DEVNULL, stderr=DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: python {' '.join(arguments)}")
    return usage.ru_utime + usage.ru_stime


def measure(runs: int = RUNS) -> list[dict[str, Any]]:
    rows = []
    for name, arguments in COMMANDS.items():
        seconds(arguments)
        found = [seconds(arguments) for _ in range(runs)]
        rows.append({"name": name, "seconds": found})
        print(f"{name}: {statistics.median(found):.2f} s", file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Median, smallest and largest processor time per command."""
    lines = ["| | processor time, s | smallest, largest |", "|---|---|---|"]
    for row in rows:
        s = row["seconds"]
        lines.append(f"| {row['name']} | {statistics.median(s):.1f} | {min(s):.2f}, {max(s):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed table, run nothing")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    add_busy(parser)
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.out.read_text())["rows"]))
        return
    require_quiet(busy=args.busy)
    rows = measure(args.runs)
    args.out.write_text(json.dumps({"machine": about(), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
