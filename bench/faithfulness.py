"""Faithfulness of attributions on the miniature: insertion and deletion curves, pointing game, relevance in the box.

python -m bench.faithfulness           run the model (a few minutes on one core), write bench/results/faithfulness.json
python -m bench.faithfulness --table   print the committed table

The explained decision is the first token (yes or no) of the greedy answer to held-out test questions; masked image positions
are replaced by the mean of all image positions. There is no dev split, because no settings are chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limelight.benchmarks.compare import compare_blocks
from limelight.benchmarks.manifest import git_hash, versions
from limelight.benchmarks.results import Run
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.grounding import box_coverage, faithfulness, grounding_block
from limelight.benchmarks.scorers.measure import evaluate
from limelight.cli.answering import ModelAnswer
from limelight.types import Record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "faithfulness.json"
METHODS = ("attnlrp", "cp-lrp", "gradient-input", "random")
CELLS = ("none/clear", "E-wrong/clear")
GRID = (7, 7)


def ask(out: Path, limit: int) -> Run:
    """The run, resumed where it stopped."""
    answer = ModelAnswer("demo-vision", generation={"max_new_tokens": 2, "do_sample": False}, faithfulness=METHODS)
    return run("demo_vision", answer, out, splits=CELLS, limit=limit, settings=answer.identity()).run


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row a cell and method: areas, the gap's paired difference to random, and where the relevance lies."""
    found = []
    for cell in CELLS:
        own = [r for r in records if r.meta["split"] == cell]
        blocks = dict(zip(METHODS, faithfulness(own), strict=True))
        for name, block in blocks.items():
            numbers = {m.name: evaluate([block])[block.named(m)].to_json() for m in block.measures}
            pairs = {d.name.rpartition("/")[2]: d for d in compare_blocks(blocks["random"], block)}
            gap = pairs["insertion minus deletion"]
            found.append(
                {
                    "cell": cell,
                    "method": name,
                    "n": len(own),
                    **numbers,
                    "minus random": {"value": gap.difference, "low": gap.low, "high": gap.high},
                    **placed(own, name),
                }
            )
    return found


def placed(records: Sequence[Record], method: str) -> dict[str, Any]:
    """Relevance inside the box of the object, of questions whose object is there, by sign treatment; pointing game."""
    table = []
    for r in records:
        if r.meta["box"]:
            left, top, right, bottom = r.meta["box"]
            scores = np.array(r.meta["curves"][method]["relevance"]).reshape(GRID)
            table.append((r, scores, box_coverage(GRID, [(left, top, right, bottom)])))
    by_sign = {s: evaluate([grounding_block("", table, s)], resamples=0) for s in ("abs", "positive")}
    return {
        "boxes": len(table),
        "grounding": {s: m["grounding"].value for s, m in by_sign.items()},
        "pointing": by_sign["positive"]["pointing game"].value,
        "chance": by_sign["abs"]["chance"].value,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| questions | attribution | insertion | deletion | insertion minus deletion | minus random | in the box, abs | in the box, positive | pointing game |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found["rows"]:
        gap, over = r["insertion minus deletion"], r["minus random"]
        beside = "" if r["method"] == "random" else f"{over['value']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}]"
        lines.append(
            f"| {r['cell']} | {r['method']} | {r['insertion']['value']:.3f} | {r['deletion']['value']:.3f} | "
            f"{gap['value']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}] | {beside} | {r['grounding']['abs']:.3f} | "
            f"{r['grounding']['positive']:.3f} | {r['pointing']:.3f} |"
        )
    first = found["rows"][0]
    lines += ["", f"{first['n']} questions per cell, {first['boxes']} of them with a box; uniform relevance scores {first['chance']:.3f} in the box."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed table")
    parser.add_argument("--limit", type=int, default=200, help="questions per cell")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "faithfulness")
    args = parser.parse_args()
    if not args.table:
        records = ask(args.out, args.limit).records
        kept = ("python", "limelight", "torch", "transformers", "numpy")
        about = {"git": git_hash(), "versions": {k: versions()[k] for k in kept}}
        RESULTS.write_text(json.dumps({"session": about, "rows": rows(records)}, indent=1) + "\n")
    print(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
