"""Time and memory of attribution relative to the plain gradient of the same model, compared with lxt.

    python -m bench.attribution --lxt-python VENV/bin/python   the committed table; VENV: lxt's own environment
    python -m bench.attribution --lengths 600 2400             without lxt; rows of other lengths and of lxt are kept

Batch 1, float32, LM of width 512 with 8 layers, random weights. "Plain" is one forward with the model's own sdpa attention and
the gradient of the top logit with respect to the merged embeddings (weights frozen, logits of the last position);
`limelight.attribute` is one call on the same model and prompt; lxt is measured on the text model only, against its plain
gradient in the same environment. The two sides of a pair run in their own processes and alternate: process time of one thread, medians
over rounds of the ratio within a round. Memory is the allocator's peak beyond the model, from its own log, which is
reproducible within one per cent, unlike the process's resident size.

The other environment: pip install lxt "transformers<4.53" torch torchvision
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import add_busy, processor, require_quiet

RESULTS = Path(__file__).parent / "results" / "attribution.json"
WORKER = Path(__file__).parent / "attribution_worker.py"
LENGTHS = (600, 2400, 8192)
ROUNDS = {600: 9, 2400: 7, 8192: 3}
PAIRS = {"limelight": ("ours", "plain"), "lxt": ("lxt", "lxt-plain")}


class Side:
    """A worker process."""

    def __init__(self, python: str, kind: str, tokens: int) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            [python, str(WORKER), kind, str(tokens)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait(self) -> None:
        if self._line() != "ready":
            raise SystemExit(f"{self.kind}: the worker did not start")

    def ask(self, what: str) -> float:
        if self.process.stdin is None:
            raise SystemExit(f"{self.kind}: the worker has no input")
        print(what, file=self.process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        line = "" if self.process.stdout is None else self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.kind}: the worker ended with {self.process.wait()}")
        return line.strip()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(tokens: int, rounds: int, pythons: dict[str, str]) -> list[dict[str, Any]]:
    """A row for limelight, and one for lxt where its Python is known; one pair after the other, for the sake of memory."""
    return [_pair(name, python, tokens, rounds) for name, python in pythons.items()]


def _pair(name: str, python: str, tokens: int, rounds: int) -> dict[str, Any]:
    mine, base = PAIRS[name]
    sides: dict[str, Side] = {}
    try:
        for kind in (mine, base):
            sides[kind] = Side(python, kind, tokens)
            sides[kind].wait()
        seconds: dict[str, list[float]] = {kind: [] for kind in sides}
        for index in range(rounds):
            for kind in (mine, base) if index % 2 else (base, mine):
                seconds[kind].append(sides[kind].ask("time"))
        memory = {kind: side.ask("memory") for kind, side in sides.items()}
    finally:
        for side in sides.values():
            side.end()
    ratios = [a / b for a, b in zip(seconds[mine], seconds[base], strict=True)]
    return {
        "name": name,
        "prompt_tokens": tokens,
        "rounds": rounds,
        "seconds": statistics.median(seconds[mine]),
        "plain_seconds": statistics.median(seconds[base]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "peak_bytes": int(memory[mine]),
        "plain_peak_bytes": int(memory[base]),
        "memory_ratio": memory[mine] / memory[base],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| attribution by | prompt | s | x plain gradient | smallest-largest | peak MiB | x plain gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['name']} | {r['prompt_tokens']} | {r['seconds']:.2f} | {r['ratio']:.2f} "
            f"| {r['ratio_low']:.2f}-{r['ratio_high']:.2f} | {r['peak_bytes'] / 2**20:.0f} | {r['memory_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--rounds", type=int, help="instead of 9, 7 and 3")
    parser.add_argument("--lxt-python", help="a Python that has lxt and a transformers it works with")
    parser.add_argument("--out", type=Path, default=RESULTS)
    add_busy(parser)
    args = parser.parse_args()
    require_quiet(busy=args.busy)
    pythons = {"limelight": sys.executable}
    if args.lxt_python is None:
        print("lxt: absent (no --lxt-python)", file=sys.stderr)
    else:
        pythons["lxt"] = args.lxt_python
    versions = {name: _versions(python) for name, python in pythons.items()}
    for tokens in args.lengths:
        new = measure(tokens, args.rounds or ROUNDS[tokens], pythons)
        print(table(new), flush=True)
        before = json.loads(args.out.read_text()) if args.out.exists() else {"rows": [], "versions": {}}
        kept, versions = before["rows"], {**before["versions"], **versions}
        rows = [
            r for r in kept if (r["name"], r["prompt_tokens"]) not in {(n["name"], n["prompt_tokens"]) for n in new}
        ]
        rows = sorted([*rows, *new], key=lambda r: (r["prompt_tokens"], r["name"]))
        found = {"machine": processor(), "versions": versions, "rows": rows}
        args.out.write_text(json.dumps(found, indent=1) + "\n")  # length by length: the longest takes a while


def _versions(python: str) -> dict[str, str]:
    code = (
        "import json, importlib.metadata as m\n"
        "def of(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return 'absent'\n"
        "print(json.dumps({n: of(n) for n in ('torch', 'transformers', 'lxt')}))"
    )
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = json.loads(out)
    return found


if __name__ == "__main__":
    main()
