"""Quality on the audio miniature: yes/no with hints, captions, transcription, silence, temporal grounding.

    python -m bench.quality_audio            everything (finished cells are kept in .cache/quality)
    python -m bench.quality_audio --only greedy "AAD, silence"
    python -m bench.quality_audio --table    print the table from the committed bench/results/quality_audio.json

As in `bench.quality`: settings are chosen on dev by accuracy at a 70:30 mixture of right and wrong hints; nothing is chosen on test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import quality_score as score
from bench.quality import Bench, arguments, fingerprint, save
from bench.quality_audio_decoders import BY_NAME, DECODERS
from bench.quality_decoders import Decoder
from bench.quality_rows import row_of

RESULTS = Path(__file__).parent / "results" / "quality_audio.json"
WORLD = "bench.quality_audio_data"
QUESTIONS, CAPTIONS, PHRASES, DEV = 1000, 200, 100, 100
COSTLY_CAPTIONS, COSTLY_PHRASES = 50, 40  # of rows that cost a hundred times as much


def speech_row(runs: dict[str, list[dict[str, Any]]], greedy: dict[str, list[dict[str, Any]]] | None) -> dict[str, Any]:
    """Word error rate of each set of phrases, invented words a recording where nobody speaks; paired with greedy."""
    out: dict[str, Any] = {}
    for where, found in runs.items():
        counted = [score.word_errors(r["texts"], r["truth"]) for r in found]
        words = sum(len(t.split()) for t in found[0]["truth"])
        errors = np.mean(counted, axis=0)  # of each recording
        out[where] = {"rate": float(errors.sum() / (words or len(errors)))}
        if greedy is not None:
            theirs = np.array(score.word_errors(greedy[where][0]["texts"], greedy[where][0]["truth"]))
            out[where]["errors_vs_greedy"] = score.paired(errors, theirs[: len(errors)])
    return out


def transcribed(bench: Bench, decoder: Decoder, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every set of phrases and every quiet set on test."""
    seeds: tuple[int | None, ...] = decoder.sample_seeds or (None,)
    sets = (*bench.data.SPEECH_SETS, *bench.data.QUIET_SETS)
    count = COSTLY_PHRASES if decoder.questions else PHRASES
    jobs = [("speech", decoder.name, "test", where, count, settings, seed) for seed in seeds for where in sets]
    done = bench.run(jobs, f"{decoder.name}, speech")
    return {where: [done[i * len(sets) + k] for i in range(len(seeds))] for k, where in enumerate(sets)}


def ceilings(bench: Bench) -> dict[str, dict[str, float]]:
    """The probe of the audio tokens in every cell."""
    out = {}
    for where in bench.data.CELLS:
        margin = bench.data.probe_margins("test", where, bench.questions)
        truth = np.array([a.truth for a in bench.data.cell("test", where, bench.questions)])
        out[where] = score.yes_no(margin, margin > 0, truth)
    return out


def main() -> None:
    args = arguments(__doc__, BY_NAME, QUESTIONS, CAPTIONS, RESULTS)
    from bench.quality_audio_table import render

    if args.table:
        print(render(json.loads(args.out.read_text())))
        return
    sizes = {"model": fingerprint("demo-audio"), "questions": args.questions, "captions": args.captions}
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if any(results.get(key) != value for key, value in sizes.items()):
        results = {**sizes, "phrases": PHRASES, "rows": {}}
    bench = Bench(args.workers, args.questions, args.captions, WORLD, DEV)
    costly = Bench(args.workers, args.questions, min(args.captions, COSTLY_CAPTIONS), WORLD, DEV)
    chosen = {name: row["settings"] for name, row in results["rows"].items()}
    greedy = bench.evaluate(BY_NAME["greedy"], {})
    greedy_said = transcribed(bench, BY_NAME["greedy"], {})
    if "probe" not in results:
        results["probe"] = ceilings(bench)
    for decoder in DECODERS:
        if args.only and decoder.name not in args.only:
            continue
        settings, trials = bench.choose(decoder, chosen)
        chosen[decoder.name] = settings
        raw, plain = (costly if decoder.questions else bench).evaluate(decoder, settings), decoder.name == "greedy"
        said = transcribed(bench, decoder, settings) if decoder.captions else {}
        results["rows"][decoder.name] = {
            "settings": settings, "change": decoder.change, "control": decoder.control, "trials": trials,
            "described": costly.captions if decoder.questions else bench.captions, "inside": raw["inside"],
            "transcribed": COSTLY_PHRASES if decoder.questions else PHRASES, "speech": speech_row(said, None if plain else greedy_said),
            **row_of(decoder, raw, None if plain else greedy),
        }  # fmt: skip
        save(results, args.out)
    print(render(results))


if __name__ == "__main__":
    main()
