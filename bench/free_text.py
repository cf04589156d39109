"""Captions and transcripts on the miniatures: settings chosen per kind of task on dev, reported on test.

    python -m bench.free_text                         both miniatures (finished jobs are kept in .cache)
    python -m bench.free_text --only greedy VCD       some rows
    python -m bench.free_text --model demo-audio      one miniature
    python -m bench.free_text --model smol-vision --captions 200      real weights (make real)
    python -m bench.free_text --table                 print the committed tables, run nothing

Captions: of a decoder's trials the one with the lowest CHAIR_s (mean of the two prompts, 150 dev scenes each) among those
whose recall is at most .01 below greedy's; where none is, the one with the highest recall. Transcripts: the lowest word
error rate over the six sets of spoken phrases. Test chooses nothing. Intervals are paired over pictures or recordings.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench import quality_score as score
from bench.free_text_trials import TRIALS
from bench.quality import Bench, fingerprint, save
from limelight.benchmarks.tuning import Trial, choose

RESULTS = Path(__file__).parent / "results" / "free_text.json"
WORLDS = {
    "demo-vision": "bench.quality_data",
    "demo-audio": "bench.quality_audio_data",
    "smol-vision": "bench.quality_smol_data",
}
MINIATURES = ("demo-vision", "demo-audio")  # which every machine can run
DECODERS = {
    "demo-vision": "bench.quality_decoders",
    "demo-audio": "bench.quality_audio_decoders",
    "smol-vision": "bench.quality_smol_decoders",
}
CAPTIONS, DEV_CAPTIONS, PHRASES, DEV_PHRASES = 1000, 150, 300, 60
RECALL_MARGIN = 0.01
FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "the", "of", "in", "on", "with", "is", "are", "there", "picture", "sound", "sounds", "then")
)


def decoders(model: str) -> dict[str, Any]:
    """Rows of the quality table of a miniature that write free text, by name; exact LIME where it says on how few captions."""
    module = importlib.import_module(DECODERS[model])
    rows = {name: d for name, d in module.BY_NAME.items() if name in TRIALS}
    return {name: d for name, d in rows.items() if d.method != "lime" or d.few_captions}


def chair_of(run: dict[str, Any]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i, recall and mentions of a caption run."""
    return score.chair((set(s), frozenset(t)) for s, t in zip(run["said"], run["truth"], strict=True))


def repeats(text: str) -> bool:
    """Whether a content word occurs twice."""
    words = [w.strip(".,") for w in text.lower().split()]
    return any(n > 1 for word, n in Counter(words).items() if word and word not in FUNCTION_WORDS)


def chosen_caption(trials: list[dict[str, Any]], greedy_recall: float) -> dict[str, Any]:
    """The trial with the lowest ``chair_s`` whose ``recall`` is at least ``greedy_recall - .01``; else the highest recall."""
    made = [Trial(t["settings"], -t["chair_s"], t["recall"]) for t in trials]
    return trials[made.index(choose(made, greedy_recall - RECALL_MARGIN))]


def caption_row(runs: list[dict[str, Any]], greedy: dict[str, Any]) -> dict[str, Any]:
    """One decoder on one caption set of test, over its seeds; paired against greedy's captions of the same scenes."""
    count = len(runs[0]["texts"])  # costly rows write the first captions of a set only
    mine, theirs = [_per_caption(r) for r in runs], {k: v[:count] for k, v in _per_caption(greedy).items()}
    chair = [chair_of(r) for r in runs]
    out: dict[str, Any] = {k: float(np.mean([c[k] for c in chair])) for k in chair[0]}
    for key in ("invented", "recall"):
        out[f"{key}_vs_greedy"] = score.paired(np.mean([m[key] for m in mine], axis=0), theirs[key])
    out["words"] = float(np.mean([m["words"] for m in mine]))
    out["perplexity"] = math.exp(float(np.mean([r["nll"] for r in runs])))
    out["repeats"] = float(np.mean([[repeats(t) for t in r["texts"]] for r in runs]))
    return out


def _per_caption(run: dict[str, Any]) -> dict[str, Any]:
    pairs = [(set(s), set(t)) for s, t in zip(run["said"], run["truth"], strict=True)]
    return {
        "invented": np.array([bool(s - t) for s, t in pairs], dtype=float),
        "recall": np.array([len(s & t) / max(len(t), 1) for s, t in pairs]),
        "words": np.array([len(t.split()) for t in run["texts"]], dtype=float),
    }


def word_rate(runs: list[dict[str, Any]]) -> float:
    """Word errors over all words of several sets."""
    errors = sum(float(np.sum(score.word_errors(r["texts"], r["truth"]))) for r in runs)
    return errors / max(sum(len(t.split()) for r in runs for t in r["truth"]), 1)


class FreeText:
    """The two kinds of task on one miniature."""

    def __init__(self, model: str, workers: int, captions: int, dev: int = DEV_CAPTIONS) -> None:
        self.model, self.captions, self.dev = model, captions, dev
        self.bench = Bench(workers, 0, captions, WORLDS[model])
        self.rows = decoders(model)
        self.sets = self.bench.data.CAPTION_SETS
        self.speech = getattr(self.bench.data, "SPEECH_SETS", ())
        self.quiet = getattr(self.bench.data, "QUIET_SETS", ())

    def _jobs(self, kind: str, name: str, split: str, sets: Any, n: int, settings: Any) -> list[Any]:
        seeds = self.rows[name].sample_seeds or (None,)
        seeds = seeds[:1] if split == "dev" else seeds
        return [(kind, name, split, where, n, settings, seed) for where in sets for seed in seeds]

    def _by_set(self, sets: Any, done: list[Any]) -> dict[str, list[Any]]:
        each = len(done) // max(len(sets), 1)
        return {where: done[i * each : (i + 1) * each] for i, where in enumerate(sets)}

    def caption(self, name: str, greedy: dict[str, Any] | None) -> dict[str, Any]:
        """Trials on dev, the chosen setting, the row on test."""
        trials = []
        few = self.rows[name].few_captions
        dev, most = few or (self.dev, self.rows[name].questions or self.captions)
        for settings in TRIALS[name] if len(TRIALS[name]) > 1 or greedy is None else ():
            jobs = self._jobs("captions", name, "dev", self.sets, dev, settings)
            found = [chair_of(r) for r in self.bench.run(jobs, f"{name} {settings}, captions on dev")]
            trials.append(
                {"settings": settings, **{k: float(np.mean([f[k] for f in found])) for k in ("chair_s", "recall")}}
            )
        best = chosen_caption(trials, self._recall(greedy, dev)) if trials else {"recall": None}
        settings = best.get("settings", TRIALS[name][0])
        count = min(self.captions, most)
        jobs = self._jobs("captions", name, "test", self.sets, count, settings)
        runs = self._by_set(self.sets, self.bench.run(jobs, f"{name}, captions on test"))
        base = {where: greedy["runs"][where][0] if greedy else runs[where][0] for where in self.sets}
        return {
            "settings": settings, "trials": trials, "dev": dev, "dev_recall": best["recall"], "count": count,
            "test": {where: caption_row(runs[where], base[where]) for where in self.sets}, "runs": runs,
        }  # fmt: skip

    def _recall(self, greedy: dict[str, Any] | None, dev: int) -> float:
        """Greedy's recall on the dev scenes on which a row's trials are compared."""
        if greedy is None or dev == self.dev:
            return greedy["dev_recall"] if greedy else 0.0
        jobs = self._jobs("captions", "greedy", "dev", self.sets, dev, {})
        return float(np.mean([chair_of(r)["recall"] for r in self.bench.run(jobs, "greedy, the same dev scenes")]))

    def transcribe(self, name: str, greedy: dict[str, Any] | None) -> dict[str, Any]:
        """Trials on dev by word error rate, the row on test with the words written where nobody speaks."""
        trials: list[dict[str, Any]] = []
        for settings in TRIALS[name]:
            jobs = self._jobs("speech", name, "dev", self.speech, DEV_PHRASES, settings)
            trials.append(
                {"settings": settings, "wer": word_rate(self.bench.run(jobs, f"{name} {settings}, speech on dev"))}
            )
        settings = choose([Trial(t["settings"], -t["wer"]) for t in trials]).settings
        sets = (*self.speech, *self.quiet)
        jobs = self._jobs("speech", name, "test", sets, PHRASES, settings)
        runs = self._by_set(sets, self.bench.run(jobs, f"{name}, speech on test"))
        row: dict[str, Any] = {}
        for where, found in runs.items():
            errors = np.mean([score.word_errors(r["texts"], r["truth"]) for r in found], axis=0)
            words = sum(len(t.split()) for t in found[0]["truth"])
            row[where] = {"rate": float(errors.sum() / (words or len(errors)))}
            base = greedy["runs"][where][0] if greedy else found[0]
            row[where]["errors_vs_greedy"] = score.paired(
                errors, np.array(score.word_errors(base["texts"], base["truth"]))
            )
        return {"settings": settings, "trials": trials, "test": row, "runs": runs}


def measure(model: str, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """All rows of one miniature, saved after each."""
    free = FreeText(model, args.workers, args.captions, args.dev)
    known = results.setdefault(model, {})
    if known.get("model") != fingerprint(model) or known.get("captions_per_set") != args.captions:
        known = results[model] = {
            "model": fingerprint(model),
            "captions_per_set": args.captions,
            "captions": {},
            "speech": {},
        }
    plain = free.caption("greedy", None)
    heard = free.transcribe("greedy", None) if free.speech else None
    for name in free.rows:
        if args.only and name not in args.only:
            continue
        row = plain if name == "greedy" else free.caption(name, plain)
        known["captions"][name] = {k: v for k, v in row.items() if k != "runs"}
        if heard is not None:
            said = heard if name == "greedy" else free.transcribe(name, heard)
            known["speech"][name] = {k: v for k, v in said.items() if k != "runs"}
        save(results, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MINIATURES), choices=list(WORLDS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"rows: {', '.join(TRIALS)}")
    parser.add_argument("--table", action="store_true", help="print the committed tables, run nothing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--captions", type=int, default=CAPTIONS, help="test captions per set")
    parser.add_argument("--dev", type=int, default=DEV_CAPTIONS, help="dev captions per set and trial")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    from bench.free_text_table import render

    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if not args.table:
        for model in args.model:
            measure(model, args, results)
    print(render(results))


if __name__ == "__main__":
    main()
