"""Quality on the video miniature: yes/no on what, when and order with hints, captions, temporal grounding.

    python -m bench.quality_video             everything (minutes; finished cells are kept in .cache/quality)
    python -m bench.quality_video --only greedy VCD
    python -m bench.quality_video --table     print the table from the committed bench/results/quality_video.json

A small table: every decoder has the library's own settings, nothing was chosen on this model. 200 questions a cell: the
standard error is 3.5 points near one half.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import quality_score as score
from bench import quality_video_data as data
from bench.quality import Bench, arguments, fingerprint, save
from bench.quality_rows import _sets
from bench.quality_table import _head, _interval, _row
from bench.quality_video_frames import render as frames_table
from limelight.demo.film_language import told
from limelight.demo.film_questions import captions

RESULTS = Path(__file__).parent / "results" / "quality_video.json"
WORLD = "bench.quality_video_data"
QUESTIONS, CAPTIONS, LOCATED = 200, 100, 100
PROBE = "probe of the video tokens (ceiling)"
BLIND = "control: greedy that never sees the hint"


def row_of(runs: dict[str, Any], greedy: dict[str, Any] | None) -> dict[str, Any]:
    """Accuracy, AUC, F1 and yes ratio of every cell, and of all cells the paired difference to greedy with its interval."""
    cells, pairs = {}, []
    for where, (run,) in runs["cells"].items():
        truth, yes = np.array(run["truth"]), np.array(run["yes"])
        cells[where] = score.yes_no(np.array(run["margin"]), yes, truth) | {"unparsed": run["unparsed"]}
        if greedy is not None:
            theirs = np.array(greedy["cells"][where][0]["yes"]) == truth
            cells[where]["vs_greedy"] = score.paired(yes == truth, theirs)
            pairs.append((yes == truth, theirs))
    described = {}
    for where, (run,) in runs["captions"].items():
        items = captions("test", where, len(run["texts"]))
        events = [told(text) for text in run["texts"]]
        described[where] = score.chair(_sets(run)) | {
            "events": sum(len(set(e) & set(q.truth)) for e, q in zip(events, items, strict=True))
            / sum(len(q.truth) for q in items),
            "in_order": float(np.mean([tuple(e) == q.truth for e, q in zip(events, items, strict=True)])),
        }
    out = {"cells": cells, "captions": described, "seconds": runs["seconds"], "video_share": runs["share"]}
    if pairs:
        ours, theirs = (np.concatenate(part) for part in zip(*pairs, strict=True))
        out["vs_greedy"] = score.paired(ours, theirs)
    return out


def located(n: int) -> dict[str, Any]:
    """Temporal grounding of the unchanged model's decision (yes - no): the share of the film's ``|R|`` in the true frames.

    By topic and hint, with the chance level (the frames' share of the film), the paired difference to it with its interval,
    and how often the frame with most relevance is a true one.
    """
    import torch

    import limelight

    torch.set_num_threads(1)
    own = data.adapter()
    yes, no = data.yes_no_ids()
    out = {}
    for where in data.CELLS:
        asked = [a for a in data.cell("test", where, 2 * n) if a.frames][:n]
        shares, chances, hits = [], [], []
        for a in asked:
            found = limelight.attribute(own, data.inputs([a]), yes, against=no)
            aim = data.inside(a, found)
            if aim is None:
                continue
            shares.append(aim[0])
            chances.append(aim[1])
            hits.append(float(int(data.per_frame(found).argmax()) in a.frames))
        out[where] = _located(shares, chances, hits)
        print(f"  temporal grounding {where}: {out[where]['inside']:.3f} ({out[where]['chance']:.3f})", flush=True)
    return out


def named(n: int) -> dict[str, Any]:
    """Temporal grounding of captions: of the first mention of each object that is there, the share of the film's ``|R|`` in the
    frames that show it, by caption set."""
    import limelight

    own, out = data.adapter(), {}
    for where in data.CAPTION_SETS:
        shares, chances, hits = [], [], []
        for c in captions("test", where, n):
            answer = limelight.generate(own, messages=c.text, media=c.film.clip(), max_new_tokens=data.CAPTION_TOKENS)
            mentions: dict[str, Any] = {}
            for step in answer.steps:
                mentions.setdefault(own.tokenizer.decode([step.token]).strip(), step.relevance)
            for name in c.film.names:
                if mentions.get(name) is not None:
                    scores, frames = data.per_frame(mentions[name]), list(c.film.of(name).frames)
                    shares.append(float(scores[frames].sum() / scores.sum()))
                    chances.append(len(frames) / len(scores))
                    hits.append(float(int(scores.argmax()) in frames))
        out[f"caption-{where}/clear, words"] = _located(shares, chances, hits)
    return out


def _located(shares: list[float], chances: list[float], hits: list[float]) -> dict[str, Any]:
    return {
        "inside": float(np.mean(shares)), "chance": float(np.mean(chances)), "hit": float(np.mean(hits)),
        "over": score.paired(np.array(shares), np.array(chances)), "n": len(shares),
    }  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """Accuracy and AUC by cell, captions, temporal grounding."""
    rows = [(d.name, results["rows"][d.name]) for d in data.DECODERS if d.name in results["rows"]]
    out: list[str] = []
    for key, title in (("accuracy", "accuracy"), ("auc", "AUC of the margin yes - no")):
        out += [f"Yes/no questions: {title}, {results['questions']} questions per cell (test)", ""]
        extra = ["minus greedy, all cells [95 %]", "yes ratio"] if key == "accuracy" else []
        out.append(_head(["decoder", *(c.replace("/", " ") for c in data.CELLS), *extra]))
        probe = [f"{results['probe'][c][key]:.3f}" for c in data.CELLS]
        out.append(_row(PROBE, [*probe, *("" for _ in extra)]))
        for name, row in rows:
            cells = [f"{row['cells'][c][key]:.3f}" for c in data.CELLS]
            ratio = float(np.mean([row["cells"][c]["yes_ratio"] for c in data.CELLS]))
            more = [_interval(row.get("vs_greedy")), f"{ratio:.2f}"] if extra else []
            out.append(_row(name, [*cells, *more]))
        greedy = results["rows"].get("greedy")
        if greedy and key == "accuracy":
            bare = [f"{c.split('-')[0]}-none/{c.split('/')[1]}" for c in data.CELLS]
            out.append(_row(BLIND, [*(f"{greedy['cells'][c][key]:.3f}" for c in bare), "", ""]))
        out.append("")
    names = "CHAIR_s / CHAIR_i / recall of objects / recall of events / all in order"
    out += [f"Captions of clear films: {names}, {results['captions']} per set (test)", ""]
    out.append(_head(["decoder", *(f"hint {c}" for c in data.CAPTION_SETS)]))
    form = "{chair_s:.2f} / {chair_i:.2f} / {recall:.2f} / {events:.2f} / {in_order:.2f}"
    out += [_row(name, [form.format(**row["captions"][c]) for c in data.CAPTION_SETS]) for name, row in rows]
    out += [
        "",
        "Temporal grounding of the decision yes - no, and of the objects that captions name: share of the film's relevance in the true frames",
        "",
    ]
    out.append(_head(["cell", "inside", "chance", "over chance [95 %]", "strongest frame is a true one", "n"]))
    for where, found in (results["located"] | results["named"]).items():
        shown = [f"{found['inside']:.3f}", f"{found['chance']:.3f}", _interval(found["over"]), f"{found['hit']:.2f}"]
        out.append(_row(where, [*shown, str(found["n"])]))
    if "frames" in results:
        out += ["", frames_table(results["frames"])]
    out += ["", "Settings (the library's; not chosen on this model)", ""]
    out.append(_head(["decoder", "settings", "video share of the answered token", "CPU seconds"]))
    for name, row in rows:
        settings = json.dumps(data.decoder(name).build(dict(data.decoder(name).grid[0])).settings())
        out.append(_row(name, [settings, f"{row['video_share']:.2f}", f"{row['seconds']:.0f}"]))
    return "\n".join(out)


def main() -> None:
    args = arguments(__doc__, data.BY_NAME, QUESTIONS, CAPTIONS, RESULTS)
    if args.table:
        print(render(json.loads(args.out.read_text())))
        return
    sizes = {"model": fingerprint(data.MODEL), "questions": args.questions, "captions": args.captions}
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if any(results.get(key) != value for key, value in sizes.items()):
        results = {**sizes, "rows": {}}
    bench = Bench(args.workers, args.questions, args.captions, WORLD)
    if "probe" not in results:
        results["probe"] = {}
        for where in data.CELLS:
            margin = data.probe_margins("test", where, args.questions)
            truth = np.array([a.truth for a in data.cell("test", where, args.questions)])
            results["probe"][where] = score.yes_no(margin, margin > 0, truth)
    greedy = bench.evaluate(data.BY_NAME["greedy"], {})
    for decoder in data.DECODERS:
        if args.only and decoder.name not in args.only:
            continue
        raw = bench.evaluate(decoder, dict(decoder.grid[0]))
        results["rows"][decoder.name] = row_of(raw, None if decoder.name == "greedy" else greedy)
        save(results, args.out)
    if "located" not in results:
        results["located"] = located(LOCATED)
        save(results, args.out)
    if "named" not in results:
        results["named"] = named(LOCATED // 2)
        save(results, args.out)
    print(render(results))


if __name__ == "__main__":
    main()
