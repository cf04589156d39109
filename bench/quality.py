"""Quality on the vision miniature: every decoder with controls, settings chosen on dev, reported on test.

    python -m bench.quality                 everything (hours on two cores; finished cells are kept in .cache/quality)
    python -m bench.quality --only greedy "exact LIME (paper)"
    python -m bench.quality --table         print the table from the committed bench/results/quality.json

A setting is chosen on dev by accuracy at a 70:30 mixture of right and wrong hints on clear and poor images, which penalises
decoders that merely ignore the text. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from bench import quality_score as score
from bench.quality_data import CACHE, CELLS, TEXT_CELLS
from bench.quality_decoders import BY_NAME, DECODERS, Decoder
from bench.quality_rows import mixture, row_of
from limelight.benchmarks.tuning import Trial, choose

VISION = "bench.quality_data"  # the module that knows a miniature's questions; bench.quality_audio_data is the other

RESULTS = Path(__file__).parent / "results" / "quality.json"
DEV_CELLS = TEXT_CELLS
DEV_QUESTIONS = 100
QUESTIONS = 1000
CAPTIONS = 200
SHARE_QUESTIONS = 60


def fingerprint(model: str = "demo-vision") -> str:
    """Of the shipped weights: results of another model are never mixed in."""
    from limelight.models.loading import packaged

    return hashlib.sha256((packaged(model) / "model.safetensors").read_bytes()).hexdigest()[:12]


def job(
    kind: str,
    name: str,
    split: str,
    where: str,
    n: int,
    settings: dict[str, Any],
    seed: int | None,
    world: str = VISION,
) -> dict[str, Any]:
    """Run one decoder on one cell (in a worker), or read what an earlier run found."""
    data = importlib.import_module(world)
    what = [kind, name, split, where, n, settings, seed, fingerprint(data.MODEL)]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:20]
    path = CACHE / f"{key}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    import logging
    import warnings

    import torch

    torch.set_num_threads(1)
    started = time.process_time()
    work = {"questions": _answer, "captions": _describe, "share": _share, "speech": _transcribe}[kind]
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = work(data, data.decoder(name), split, where, n, settings, seed)
    finally:
        logging.disable(before)
    out["seconds"] = time.process_time() - started
    CACHE.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(out))
    path.with_suffix(".part").rename(path)
    return out


def _generate(
    own: Any, decoder: Decoder, settings: dict[str, Any], tensors: dict[str, Any], seed: int | None, tokens: int
) -> Any:
    import torch

    import limelight

    fn = limelight.custom_generate(
        decoder.build(settings), processor=own.processor, tensors=tensors, seed=seed, return_cache=False
    )
    sampled = (
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if seed is not None else {"do_sample": False}
    )
    with torch.no_grad():
        return own.model.generate(
            **tensors, custom_generate=fn, max_new_tokens=tokens, return_dict_in_generate=True, output_logits=True,
            disable_compile=True, **sampled,
        )  # fmt: skip


def _answer(
    data: Any, decoder: Decoder, split: str, where: str, n: int, settings: dict[str, Any], seed: int | None
) -> dict[str, Any]:
    yes, no = data.yes_no_ids()
    asked = data.cell(split, where, n)
    margin: dict[str, float] = {}
    chosen: dict[str, int] = {}
    size = 1 if decoder.method == "opera" else getattr(data, "BATCH", 40)
    for number, (part, tensors) in enumerate(data.batches(asked, size)):
        drawn = None if seed is None else seed * 100_000 + number * 1000
        out = _generate(data.adapter(), decoder, settings, tensors, drawn, 1)
        for a, logits, token in zip(part, out.logits[0], out.sequences[:, -1].tolist(), strict=True):
            difference = float(logits[yes]) - float(logits[no])
            margin[a.id] = max(-1e4, min(1e4, 0.0 if difference != difference else difference))
            chosen[a.id] = token
    return {
        "margin": [round(margin[a.id], 5) for a in asked],
        "yes": [chosen[a.id] == yes for a in asked],
        "unparsed": sum(chosen[a.id] not in (yes, no) for a in asked),
        "truth": [bool(a.truth) for a in asked],
    }


def _describe(
    data: Any, decoder: Decoder, split: str, where: str, n: int, settings: dict[str, Any], seed: int | None
) -> dict[str, Any]:
    asked = data.caption_set(split, where, n)
    said: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    surprise: dict[str, float] = {}
    size = 1 if decoder.method in ("opera", "lrp-beam") else 25
    for number, (part, tensors) in enumerate(data.batches(asked, size)):
        drawn = None if seed is None else seed * 100_000 + number * 1000
        out = _generate(data.adapter(), decoder, settings, tensors, drawn, getattr(data, "CAPTION_TOKENS", 24))
        answers = data.adapter().tokenizer.batch_decode(
            out.sequences[:, tensors["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for a, text in zip(part, answers, strict=True):
            texts[a.id] = text.strip()
            said[a.id] = sorted(data.mentioned(text))
        if split == "test":
            losses = _surprise(data.adapter(), tensors, out.sequences)
            surprise |= {a.id: round(loss, 4) for a, loss in zip(part, losses, strict=True)}
    return {
        "said": [said[a.id] for a in asked],
        "truth": [sorted(a.truth) for a in asked],
        "texts": [texts[a.id] for a in asked],
        "nll": [surprise[a.id] for a in asked if a.id in surprise],
    }


def _surprise(own: Any, tensors: dict[str, Any], sequences: Any) -> list[float]:
    """Mean negative log-probability per token of each answer (its end included) under the unchanged model."""
    import torch

    start = tensors["input_ids"].shape[1]
    answer = sequences[:, start:]
    pad = own.tokenizer.pad_token_id
    ended = (answer == own.tokenizer.eos_token_id).cumsum(-1)
    real = ((ended == 0) | ((ended == 1) & (answer == own.tokenizer.eos_token_id))) & (answer != pad)
    if pad == own.tokenizer.eos_token_id:
        real = (ended == 0) | ((ended == 1) & (answer == pad))
    mask = torch.cat([tensors["attention_mask"], real.long()], dim=1)
    with torch.no_grad():
        given = {**tensors, "input_ids": sequences, "attention_mask": mask}
        logits = own.model(**given, use_cache=False).logits[:, start - 1 : -1].float()
    loss = -torch.log_softmax(logits, -1).gather(-1, answer[..., None])[..., 0]
    return [float(row[keep].mean()) if bool(keep.any()) else 0.0 for row, keep in zip(loss, real, strict=True)]


def _share(
    data: Any, decoder: Decoder, split: str, where: str, n: int, settings: dict[str, Any], seed: int | None
) -> dict[str, Any]:
    """Modality share of the answered token's relevance: under the decoder's own forward where it has one (LIME)."""
    import limelight

    own, shares, aimed = data.adapter(), list[float](), list[tuple[float, float]]()
    for asked in data.cell(split, where, n):
        tensors = data.inputs([asked])
        if decoder.method == "lime":
            fn = limelight.custom_generate(decoder.build(settings), processor=own.processor, details=True)
            out = own.model.generate(
                **tensors,
                custom_generate=fn,
                max_new_tokens=1,
                do_sample=False,
                return_dict_in_generate=True,
                disable_compile=True,
            )
            shares.append(out.steps[0][0].shares[data.MODALITY])
            found = out.steps[0][0].relevance
        else:
            token = int(_generate(own, decoder, settings, tensors, seed, 1).sequences[0, -1])
            found = limelight.attribute(own, tensors, token)
            shares.append(found.share(data.MODALITY))
        aim = data.inside(asked, found)
        aimed += [aim] if aim is not None else []
    inside, chance = np.mean(aimed, axis=0).tolist() if aimed else (None, None)
    return {"share": float(np.mean(shares)), "inside": inside, "chance": chance}


def _transcribe(
    data: Any, decoder: Decoder, split: str, where: str, n: int, settings: dict[str, Any], seed: int | None
) -> dict[str, Any]:
    """What a decoder writes for spoken phrases, or where nobody speaks."""
    asked, texts = data.speech_set(split, where, n), dict[str, str]()
    for number, (part, tensors) in enumerate(data.batches(asked, 30)):
        drawn = None if seed is None else seed * 100_000 + number * 1000
        out = _generate(data.adapter(), decoder, settings, tensors, drawn, 10)
        answers = data.adapter().tokenizer.batch_decode(
            out.sequences[:, tensors["input_ids"].shape[1] :], skip_special_tokens=True
        )
        texts |= {a.id: text.strip() for a, text in zip(part, answers, strict=True)}
    return {"texts": [texts[a.id] for a in asked], "truth": [a.truth for a in asked]}


class Bench:
    """Runs jobs on worker processes, with a line of progress for each."""

    def __init__(
        self, workers: int, questions: int, captions: int, world: str = VISION, dev: int = DEV_QUESTIONS
    ) -> None:
        self.workers, self.questions, self.captions = workers, questions, captions
        self.world, self.dev, self.data = world, dev, importlib.import_module(world)

    def run(self, jobs: list[tuple[Any, ...]], title: str) -> list[dict[str, Any]]:
        results: dict[int, dict[str, Any]] = {}
        started = time.time()

        def keep(index: int, result: dict[str, Any]) -> None:
            results[index] = result
            left = (time.time() - started) / len(results) * (len(jobs) - len(results))
            print(f"  {title}: {len(results)}/{len(jobs)}, about {left:.0f} s left", file=sys.stderr, flush=True)

        if self.workers == 1:
            for i, one in enumerate(jobs):
                keep(i, job(*one, self.world))
        else:
            with ProcessPoolExecutor(self.workers) as pool:
                futures = {pool.submit(job, *one, self.world): i for i, one in enumerate(jobs)}
                for future in as_completed(futures):
                    keep(futures[future], future.result())
        return [results[i] for i in range(len(jobs))]

    def choose(
        self, decoder: Decoder, chosen: dict[str, dict[str, Any]]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The best settings on dev, and what every trial scored."""
        if decoder.like:
            return chosen[decoder.like], []
        if len(decoder.grid) == 1:
            return dict(decoder.grid[0]), []
        jobs = [
            ("questions", decoder.name, "dev", where, decoder.few_dev or self.dev, settings, None)
            for settings in decoder.grid
            for where in DEV_CELLS
        ]
        done = self.run(jobs, f"{decoder.name}, choosing on dev")
        trials = []
        for i, settings in enumerate(decoder.grid):
            part = done[i * len(DEV_CELLS) : (i + 1) * len(DEV_CELLS)]
            accuracy = {
                where: float((np.array(r["yes"]) == np.array(r["truth"])).mean())
                for where, r in zip(DEV_CELLS, part, strict=True)
            }
            trials.append({"settings": settings, "dev_70_30": mixture(accuracy, 0.7)})
        best = choose([Trial(t["settings"], t["dev_70_30"]) for t in trials])
        return best.settings, trials

    def evaluate(self, decoder: Decoder, settings: dict[str, Any]) -> dict[str, Any]:
        """Every cell and caption set on test."""
        seeds: tuple[int | None, ...] = decoder.sample_seeds or (None,)
        every, described = self.data.CELLS, self.data.CAPTION_SETS
        count = min(self.questions, decoder.questions or self.questions)
        jobs: list[tuple[Any, ...]] = [
            ("questions", decoder.name, "test", where, count, settings, seed) for seed in seeds for where in every
        ]
        jobs += [
            ("captions", decoder.name, "test", where, self.captions, settings, seed)
            for seed in seeds
            for where in described
            if decoder.captions
        ]
        shared = getattr(self.data, "SHARE_CELL", "E-wrong/clear")
        jobs += [("share", decoder.name, "test", shared, SHARE_QUESTIONS, settings, seeds[0])]
        done = self.run(jobs, f"{decoder.name}, test")
        cells = {where: [done[i * len(every) + k] for i in range(len(seeds))] for k, where in enumerate(every)}
        rest = done[len(seeds) * len(every) :]
        spoken = {
            where: [rest[i * len(described) + k] for i in range(len(seeds))]
            for k, where in enumerate(described)
            if decoder.captions
        }
        return {
            "cells": cells,
            "captions": spoken,
            "share": done[-1]["share"],
            "inside": (done[-1].get("inside"), done[-1].get("chance")),
            "seconds": sum(r["seconds"] for r in done),
        }


def ceilings(n: int) -> dict[str, dict[str, float]]:
    """The probe of the image tokens in every cell: what the picture tells, hint or no hint."""
    from bench.quality_data import cell, probe_margins
    from limelight.demo.questions import questions

    out = {}
    for where in CELLS:
        asked = cell("test", where, n)
        margin = probe_margins(asked, [q.object for q in questions("test", where, n)])
        out[where] = score.yes_no(margin, margin > 0, np.array([a.truth for a in asked]))
    return out


def arguments(doc: str | None, names: Iterable[str], questions: int, captions: int, out: Path) -> argparse.Namespace:
    """The command line of both quality benches."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"decoders: {', '.join(names)}")
    parser.add_argument("--table", action="store_true", help="print the committed table, run nothing")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--questions", type=int, default=questions, help="a cell")
    parser.add_argument("--captions", type=int, default=captions, help="a set")
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args()


def save(results: Mapping[str, Any], out: Path) -> None:
    """After every row, so that a run that is stopped goes on behind it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    args = arguments(__doc__, BY_NAME, QUESTIONS, CAPTIONS, RESULTS)
    from bench.quality_table import pareto, render

    if args.table:
        print(render(json.loads(args.out.read_text())))
        return
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    if known.get("model") != fingerprint() or known.get("questions") != args.questions:
        known = {}
    results: dict[str, Any] = known or {
        "model": fingerprint(), "questions": args.questions, "captions": args.captions, "rows": {}
    }  # fmt: skip
    bench = Bench(args.workers, args.questions, args.captions)
    chosen = {name: row["settings"] for name, row in results["rows"].items()}
    greedy = bench.evaluate(BY_NAME["greedy"], {})
    if "probe" not in results:
        results["probe"] = ceilings(args.questions)
    for decoder in DECODERS:
        if args.only and decoder.name not in args.only:
            continue
        try:
            settings, trials = bench.choose(decoder, chosen)
        except KeyError:
            print(f"{decoder.name} takes the settings of {decoder.like}, which has not run", file=sys.stderr)
            continue
        chosen[decoder.name] = settings
        raw = bench.evaluate(decoder, settings)
        row = row_of(decoder, raw, None if decoder.name == "greedy" else greedy)
        results["rows"][decoder.name] = {
            "settings": settings,
            "change": decoder.change,
            "control": decoder.control,
            "trials": trials,
            **row,
        }
        save(results, args.out)
    print(render(results))
    pareto(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
