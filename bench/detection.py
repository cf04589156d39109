"""Detection of invented words: our token scores, published ones and controls, on held-out media.

    python -m bench.detection                          both miniatures (half an hour of one core each), bench/results/detection.json
    python -m bench.detection --only demo-audio        one of them; rows of the other are kept
    python -m bench.detection --model MODEL --data DIR another checkpoint, on the files of `limelight bench labelled`
    python -m bench.detection --table                  print the committed tables

smol-vision: `python -m recipes.real_vision.labelled DIR --sight small`, then `--model smol-vision --data DIR --name
"smol-vision, small"`; so for clear, faint, and `--hint E-wrong`.

Greedy answers are stored row by row under --out: the same command resumes. There is no dev split, because no settings are
chosen: every score is used as in its paper or this library; logistic regressions (calibration, the combination) are fitted
on different media than they are applied to. Intervals are 95 % of 1000 bootstrap resamples over images or clips.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limelight.benchmarks.compare import compare_blocks
from limelight.benchmarks.manifest import git_hash, versions
from limelight.benchmarks.runner import run
from limelight.benchmarks.scorers.detection import CONTROLS, MEASURES, PAIR
from limelight.benchmarks.scorers.measure import Block, evaluate
from limelight.benchmarks.task import task
from limelight.cli.answering import ModelAnswer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "detection.json"
DESCRIBED = ("caption-none", "caption-E-wrong", "caption-none/poor", "caption-E-wrong/poor")
ASKED = ("none/clear", "E-wrong/clear")
SPOKEN = ("speech-usual/clear", "speech-broken/clear", "speech-broken/medium", "quiet-noise")
# task, and the splits that are run with as many media as --limit says, and with a fifth of them
MINIATURES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "demo-vision": ("demo_vision", DESCRIBED, ASKED),
    "demo-audio": ("demo_audio", DESCRIBED, (*ASKED, *SPOKEN)),
}
FEWER = 5
BATCH = 16  # answers generated together; they are scored one by one
USUAL, NEWER = ("attnlrp", "cp-lrp"), ("reslrp", "pa-lrp", "cp-lrp-linear")
KINDS = ("captions", "questions", "transcripts", "captions: newer composites")
COMBINED = " + ".join(PAIR)
SHOWN = ("z", "log-probability", "position")  # of every split
PUBLISHED = (
    *("log-probability", "entropy", "logit lens", "attention to media", "attention concentration", "contextual lens"),
    *("GLSim", "attention to prefix", "PMI"),
)


def answers(
    model: str, name: str, out: Path, limit: int, splits: Sequence[str], data: Path | None, composites: tuple[str, ...]
) -> list[Block]:
    """The blocks of a run, resumed where it stopped."""
    torch.set_num_threads(1)
    length = task(name).max_new_tokens
    answer = ModelAnswer(model, generation={"max_new_tokens": length, "do_sample": False}, evidence=composites)
    found = run(
        name,
        answer,
        out,
        data=data,
        splits=splits,
        limit=limit,
        settings=answer.identity(),
        answer_many=answer.many,
        batch_size=BATCH,
    ).run
    return found.blocks()


def measured(model: str, out: Path, limit: int, data: Path | None, called: str | None = None) -> list[Block]:
    """A miniature's captions, and fewer of its questions and phrases; or the labelled files of another checkpoint. Then the
    newer composites, on fewer media."""
    folder = out / f"{(called or model).replace('/', '_').replace(' ', '_')}-{limit}"
    name, many, few = ("labelled", (), ()) if data is not None else MINIATURES[model]
    fewer = max(1, limit // FEWER)
    blocks = answers(model, name, folder / "answers", limit, many, data, USUAL)
    if few:
        blocks += answers(model, name, folder / "others", fewer, few, data, USUAL)
    newer = answers(model, name, folder / "composites", fewer, many, data, (USUAL[0], *NEWER))
    described = [b for b in newer if b.name.startswith(f"{KINDS[0]}/")]
    return [*blocks, *(replace(b, name=b.name.replace(KINDS[0], KINDS[-1], 1)) for b in described)]


def rows(blocks: Sequence[Block]) -> dict[str, Any]:
    """kind -> units and a row a score, best first within ours, the published, the controls; and pairs of scores."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        own = {b.name.removeprefix(f"{kind}/"): b for b in blocks if b.name.startswith(f"{kind}/")}
        own = {k: b for k, b in own.items() if b.measures == MEASURES and not (k == "attnlrp Phi" and "Phi" in own)}
        if not own:
            continue
        any_of = next(iter(own.values()))
        scores = []
        for name, block in own.items():
            numbers = evaluate([block])
            scores.append({"score": name, **{m.name: numbers[block.named(m)].to_json() for m in MEASURES}})
        found[kind] = {
            "units": len(any_of.ids),
            "invented": int(any_of.columns["invented"].sum()),
            "media": len(set(any_of.clusters)),
            "scores": sorted(scores, key=lambda s: (_group(s["score"]), -s["AUROC"]["value"])),
            "splits": _splits(blocks, kind, any_of.ids),
            "pairs": [p for a, b in _pairs(own) if (p := _difference(own, a, b)) is not None],
        }
    return found


def _splits(blocks: Sequence[Block], kind: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Split -> score -> AUROC and AUROC at like positions, of the splits whose units are of that kind."""
    found: dict[str, dict[str, Any]] = {}
    there = set(ids)
    for block in blocks:
        split, _, score = block.name.rpartition("/")
        if split != kind and block.measures == MEASURES[:2] and set(block.ids) <= there and score in SHOWN:
            numbers = evaluate([block])
            found.setdefault(split, {})[score] = {m.name: numbers[block.named(m)].to_json() for m in block.measures}
    return found


def _group(score: str) -> int:
    return 3 if score == "probe" else 2 if score in CONTROLS else 1 if score in PUBLISHED else 0


def _pairs(own: Mapping[str, Block]) -> list[tuple[str, str]]:
    """z against the best published score and the control, and the combination against its two halves."""
    auroc = {k: evaluate([b], resamples=0)[b.named(MEASURES[0])].value for k, b in own.items()}
    best = max((k for k in own if k in PUBLISHED), key=auroc.__getitem__, default="")
    return list(
        dict.fromkeys([("z", PAIR[0]), ("z", best), ("z", "position"), (COMBINED, PAIR[0]), (COMBINED, PAIR[1])])
    )


def _difference(own: Mapping[str, Block], a: str, b: str) -> dict[str, Any] | None:
    if a not in own or b not in own:
        return None
    found = next(d for d in compare_blocks(own[b], own[a]) if d.name.endswith("/AUROC"))
    return {"score": a, "minus": b, "value": found.difference, "low": found.low, "high": found.high}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a table a model and kind of unit."""
    lines: list[str] = []
    for model, kinds in found["models"].items():
        for kind, block in kinds.items():
            lines += [
                f"**{model}, {kind}**: {block['units']} units of {block['media']} media, {block['invented']} invented",
                "",
                "| score | AUROC | at like positions | AUPR | FPR at 95 % recall | ECE |",
                "|---|---|---|---|---|---|",
            ]
            last = -1
            for s in block["scores"]:
                group = _group(s["score"])
                if group != last:
                    lines.append(f"| *{('ours', 'published', 'controls', 'ceiling')[group]}* | | | | | |")
                    last = group
                cells = [_shown(s[m.name], interval=m in MEASURES[:2]) for m in MEASURES]
                lines.append(f"| {s['score']} | {' | '.join(cells)} |")
            lines += ["", *(_sentence(p) for p in block["pairs"])]
            for split, scores in block["splits"].items():
                auroc, like = (m.name for m in MEASURES[:2])
                of = [
                    f"{s} {scores[s][auroc]['value']:.3f} / {scores[s][like]['value']:.3f}"
                    for s in SHOWN
                    if s in scores
                ]
                lines.append(f"- {split}, AUROC and AUROC at like positions: {', '.join(of)}")
            lines.append("")
    return "\n".join(lines).strip()


def _shown(metric: Mapping[str, Any], interval: bool) -> str:
    if metric["value"] is None or math.isnan(metric["value"]):
        return "-"
    if not interval or metric["low"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _sentence(pair: Mapping[str, Any]) -> str:
    return f"- AUROC of {pair['score']} minus {pair['minus']}: {pair['value']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed tables")
    parser.add_argument("--only", choices=MINIATURES, help="one miniature")
    parser.add_argument("--model", help="another checkpoint; needs --data")
    parser.add_argument("--data", type=Path, help="folder with labelled.jsonl (limelight bench labelled)")
    parser.add_argument("--name", help="what its tables are called (default: the model's name)")
    parser.add_argument("--limit", type=int, default=500, help="media a split")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "detection", help="where answers are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.name and args.model is None:
        parser.error("--name goes with --model")
    if (args.model is None) != (args.data is None):
        parser.error("--model and --data go together; without them the miniatures are measured")
    if not args.table:
        known = json.loads(args.results.read_text()) if args.results.exists() else {"models": {}}
        wanted = [args.only] if args.only else list(MINIATURES)
        for model in wanted if args.model is None else [args.model]:
            called = args.name or model
            blocks = measured(model, args.out, args.limit, args.data, called)
            kept = ("python", "limelight", "torch", "transformers", "numpy")
            about = {"git": git_hash(), "versions": {k: versions()[k] for k in kept}}
            known = {**known, "session": about, "models": {**known["models"], called: rows(blocks)}}
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(known, indent=1) + "\n")
    print(table(json.loads(args.results.read_text())))


if __name__ == "__main__":
    main()
