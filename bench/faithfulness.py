"""Faithfulness of attributions on the miniatures: insertion and deletion curves, and whether relevance lies on the object.

python -m bench.faithfulness           run the models (half an hour on one core), write bench/results/faithfulness.json
python -m bench.faithfulness --only demo-audio    one miniature; rows of the other stay
python -m bench.faithfulness --table   print the committed table

The explained decision is the first token (yes or no) of the greedy answer to held-out test questions; masked positions are
replaced by the mean of all positions of the picture or sound. There is no dev split, because no settings are chosen. SRG is
the area under insertion minus that under deletion. On the object (its box in the picture, its time in the sound; questions
whose object is there): mass of relevance inside by sign, pointing game, EAGLE's point game, object IoU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limelight.benchmarks.compare import compare_blocks
from limelight.benchmarks.manifest import git_hash, versions
from limelight.benchmarks.results import Run
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.grounding import (
    box_coverage,
    event_coverage,
    faithfulness,
    grounding_block,
    object_iou,
    point_game,
)
from limelight.benchmarks.scorers.measure import Array, evaluate
from limelight.cli.answering import ModelAnswer
from limelight.types import Record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "faithfulness.json"
METHODS = (
    *("attnlrp", "cp-lrp", "cp-lrp-linear", "reslrp", "pa-lrp", "gradient-input"),
    *("gradient-norm", "random"),  # controls
)
CELLS = ("none/clear", "E-wrong/clear")
WORLDS = {"demo-vision": "demo_vision", "demo-audio": "demo_audio"}
GRID = (7, 7)


def ask(model: str, out: Path, limit: int) -> Run:
    """The run, resumed where it stopped."""
    torch.set_num_threads(1)
    answer = ModelAnswer(model, generation={"max_new_tokens": 2, "do_sample": False}, faithfulness=METHODS)
    return run(WORLDS[model], answer, out / model, splits=CELLS, limit=limit, settings=answer.identity()).run


def rows(model: str, records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row a cell and method: areas, the SRG's paired difference to random, and where the relevance lies."""
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
                    "model": model,
                    "cell": cell,
                    "method": name,
                    "n": len(own),
                    **numbers,
                    "minus random": {"value": gap.difference, "low": gap.low, "high": gap.high},
                    **placed(own, name),
                }
            )
    return found


def region(record: Record, method: str) -> tuple[Array, Array] | None:
    """Relevance in the medium's own layout and the part of each cell on the object; None where the object is not there."""
    scores = np.array(record.meta["curves"][method]["relevance"], dtype=np.float64)
    if record.meta.get("box"):
        left, top, right, bottom = record.meta["box"]
        return scores.reshape(GRID), box_coverage(GRID, [(left, top, right, bottom)])
    if record.meta.get("span"):
        on, off = record.meta["span"]
        return scores, event_coverage(len(scores), record.meta["seconds"] / len(scores), [(on, off)])
    return None


def placed(records: Sequence[Record], method: str) -> dict[str, Any]:
    """Relevance on the object of questions whose object is there: mass by sign treatment, points, IoU."""
    table = [(r, *found) for r in records if (found := region(r, method)) is not None]
    by_sign = {s: evaluate([grounding_block("", table, s)], resamples=0) for s in ("abs", "positive")}
    return {
        "boxes": len(table),
        "grounding": {s: m["grounding"].value for s, m in by_sign.items()},
        "pointing": by_sign["positive"]["pointing game"].value,
        "point game": float(np.mean([point_game(s, c) for _, s, c in table])),
        "object IoU": float(np.mean([object_iou(s, c) for _, s, c in table])),
        "chance": by_sign["abs"]["chance"].value,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: a table a model."""
    lines: list[str] = []
    for model in dict.fromkeys(r["model"] for r in found["rows"]):
        own = [r for r in found["rows"] if r["model"] == model]
        lines += [
            f"**{model}**: {own[0]['n']} questions a cell, {own[0]['boxes']} of them with the object; uniform relevance has "
            f"{own[0]['chance']:.3f} of its mass on it.",
            "",
            "| questions | attribution | insertion | deletion | SRG | SRG minus random | mass, abs | mass, positive | pointing | point game | IoU |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in own:
            gap, over = r["insertion minus deletion"], r["minus random"]
            beside = (
                "" if r["method"] == "random" else f"{over['value']:+.3f} [{over['low']:+.3f}, {over['high']:+.3f}]"
            )
            lines.append(
                f"| {r['cell']} | {r['method']} | {r['insertion']['value']:.3f} | {r['deletion']['value']:.3f} | "
                f"{gap['value']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}] | {beside} | {r['grounding']['abs']:.3f} | "
                f"{r['grounding']['positive']:.3f} | {r['pointing']:.3f} | {r['point game']:.3f} | {r['object IoU']:.3f} |"
            )
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed table")
    parser.add_argument("--only", choices=WORLDS, help="one miniature; rows of the other stay")
    parser.add_argument("--limit", type=int, default=100, help="questions a cell")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "faithfulness")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.table:
        for model in [args.only] if args.only else list(WORLDS):
            records = ask(model, args.out, args.limit).records
            kept = ("python", "limelight", "torch", "transformers", "numpy")
            about = {"git": git_hash(), "versions": {k: versions()[k] for k in kept}}
            known = json.loads(args.results.read_text())["rows"] if args.results.exists() else []
            others = [r for r in known if r["model"] != model]
            both = sorted([*others, *rows(model, records)], key=lambda r: list(WORLDS).index(r["model"]))
            args.results.write_text(json.dumps({"session": about, "rows": both}, indent=1) + "\n")
    print(table(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
