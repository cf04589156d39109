"""What smol-vision can do before any rule: captions and questions on scenes of cut-outs that training has not seen.

    python -m bench.smol_vision            clear, small and faint things of the test split (bench/results/smol_vision.json)
    python -m bench.smol_vision --table    print the committed table

It needs `make real` and the recipe's cut-outs (apt-get download). Intervals are 95 % of 2000 bootstrap resamples over scenes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes.real_vision.nouns import CANDIDATES, NOUNS

from bench.quality import fingerprint

RESULTS = Path(__file__).parent / "results" / "smol_vision.json"
SIGHTS, KINDS = ("clear", "small", "faint"), ("yes", "random", "popular", "adversarial")
BATCH = 40
Interval = tuple[float, float, float]


def interval(top: Sequence[float], below: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """The ratio of two sums over scenes, and its bootstrap interval."""
    a, b = np.asarray(top, float), np.asarray(below, float)
    drawn = np.random.default_rng(seed).integers(0, len(a), (resamples, len(a)))
    ratios = a[drawn].sum(1) / np.maximum(b[drawn].sum(1), 1e-9)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(a.sum() / max(b.sum(), 1e-9)), float(low), float(high)


def measured(sight: str, count: int) -> dict[str, Any]:
    """Captions and balanced questions about ``count`` test scenes."""
    from recipes.real_vision import build
    from recipes.real_vision.data import pixels
    from recipes.real_vision.evaluate import answers, margins
    from recipes.real_vision.questions import company, picture
    from recipes.real_vision.text import DESCRIBE, question, says

    import limelight

    adapter = limelight.load("smol-vision", calibration=None)
    model, packer = adapter.model, build.packer(adapter.tokenizer)
    rng = random.Random(f"{sight}/measured")
    rows: list[dict[str, float]] = []
    by_noun: dict[str, list[int]] = {n: [0, 0] for n in sorted(NOUNS)}
    shown = []
    for start in range(0, count, BATCH):
        scenes = [picture("test", sight, n) for n in range(start, min(start + BATCH, count))]
        with torch.no_grad():
            values = model.model.vision_tower(pixels(scenes)).last_hidden_state
        said = answers(model, packer, [DESCRIBE[0]] * len(scenes), values)
        own: list[dict[str, float]] = []
        for scene, text in zip(scenes, said, strict=True):
            words, there = says(text, CANDIDATES), set(scene.nouns)
            wrong = sum(w not in there for w in words)
            own.append({"things": len(there), "found": len(there & set(words)), "named": len(words), "wrong": wrong,
                        "any_wrong": float(wrong > 0), "words": len(text.split())})  # fmt: skip
            for noun in there:
                by_noun[noun][0] += noun in words
                by_noun[noun][1] += 1
            if len(shown) < 8:
                shown.append([list(scene.nouns), text])
        for kind in KINDS:
            asked = [rng.choice(s.nouns) if kind == "yes" else company().absent(kind, s.nouns, rng) for s in scenes]
            found = margins(model, packer, [question(a) for a in asked], values) > 0
            for row, yes in zip(own, found.tolist(), strict=True):
                row[kind] = float(yes == (kind == "yes"))
        rows += own
        print(f"{sight}: {len(rows)} of {count}", flush=True)
    column = {k: [r[k] for r in rows] for k in rows[0]}
    ones = [1.0] * len(rows)
    return {
        "scenes": len(rows), "recall": interval(column["found"], column["things"]),
        "CHAIR_i": interval(column["wrong"], column["named"]), "CHAIR_s": interval(column["any_wrong"], ones),
        "words": float(np.mean(column["words"])), **{k: interval(column[k], ones) for k in KINDS},
        "by_noun": {n: [a / b, b] for n, (a, b) in by_noun.items() if b}, "examples": shown,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    names = {"clear": "clear", "small": "small (44 to 64 pixels of 320)", "faint": "faint (28 % opaque)"}
    heads = (
        "things",
        "scenes",
        "recall",
        "CHAIR_s",
        "CHAIR_i",
        "words",
        "there: yes",
        *(f"absent, {k}: no" for k in KINDS[1:]),
    )
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for sight in SIGHTS:
        if sight in found["sights"]:
            r = found["sights"][sight]
            numbers = [_shown(r[k]) for k in ("recall", "CHAIR_s", "CHAIR_i")]
            cells = [names[sight], str(r["scenes"]), *numbers, f"{r['words']:.1f}", *(_shown(r[k]) for k in KINDS)]
            out.append("| " + " | ".join(cells) + " |")
    nouns = sorted(found["sights"]["clear"]["by_noun"].items(), key=lambda item: item[1][0])
    out += ["", "Recall of each noun, clear: " + ", ".join(f"{n} {r:.2f} ({k})" for n, (r, k) in nouns) + "."]
    return "\n".join(out)


def _shown(value: Sequence[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed table")
    parser.add_argument("--scenes", type=int, default=200, help="of each sight")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.table:
        found: dict[str, Any] = {"model": fingerprint("smol-vision"), "sights": {}}
        for sight in SIGHTS:
            found["sights"][sight] = measured(sight, args.scenes)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
