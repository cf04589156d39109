"""Where in a recording the relevance of a word is: at the encoder's states, and at its input frames through the encoder.

    python -m bench.whisper_places            50 recordings, whisper-tiny.en (ten minutes of one core), bench/results/whisper_places.json
    python -m bench.whisper_places --table    print the committed table

Each recording is two sentences of `bench.whisper_data` by one voice, with silence before, between and after them. The spoken text
is given to the model, and the first token of the longest word of either sentence is explained. Measured on the absolute
relevance within the recording (padding up to 30 s left out): the share inside the seconds of the word's own sentence, and
whether the 100 ms with the most of it are there. Chance is the share of the recording that the sentence takes up. Needs the
weights (`make real`) and a Debian system, as `bench.whisper`; each recording is a row on disk, and the same command resumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import limelight
from bench.whisper_data import CACHE, RATE, Samples, rng_of, sentences
from limelight.benchmarks.manifest import git_hash, versions
from limelight.benchmarks.rowlog import RowLog
from limelight.decoding.transcribe import prompt_for
from limelight.relevance.attribute import attribute
from limelight.report.input_time import over_time

RESULTS = Path(__file__).resolve().parent / "results" / "whisper_places.json"
MODEL = "whisper-tiny.en"
COMPOSITES = ("attnlrp", "cp-lrp")
STEP = 0.1  # seconds
Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two sentences in one recording; ``spans``: when each is spoken, in seconds."""

    id: str
    texts: tuple[str, str]
    samples: Samples
    spans: tuple[tuple[float, float], tuple[float, float]]


def spoken(samples: Samples) -> Samples:
    """The recording without the silence around the speech."""
    level = np.convolve(np.square(samples, dtype=np.float64), np.ones(400) / 400, "same")
    loud = np.flatnonzero(level > 1e-4 * level.max())
    return samples[loud[0] : loud[-1] + 1]


def pairs(count: int) -> Iterator[Pair]:
    """Sentences of one to four seconds, each paired with the next of its voice."""
    found: dict[str, list[tuple[str, str, Samples]]] = {}
    for name, text, make in sentences():
        voice = name.split("/")[0]
        found.setdefault(voice, []).append((name, text, make()))
    waiting = {
        voice: [(n, t, spoken(s)) for n, t, s in rows if 1.0 <= len(spoken(s)) / RATE <= 4.5]
        for voice, rows in found.items()
    }
    made = 0
    while made < count and any(len(rows) > 1 for rows in waiting.values()):
        for rows in waiting.values():
            if len(rows) < 2 or made == count:
                continue
            (name, text, first), (other, said, second) = rows.pop(0), rows.pop(0)
            rng = rng_of(f"{name} {other}")
            before, between, after = (int(rng.uniform(1, 3) * RATE) for _ in range(3))
            quiet = [10 ** (-70 / 20) * rng.standard_normal(n).astype(np.float32) for n in (before, between, after)]
            parts = [quiet[0], first / np.abs(first).max() / 2, quiet[1], second / np.abs(second).max() / 2, quiet[2]]
            edges = np.cumsum([len(p) for p in parts]) / RATE
            spans = ((float(edges[0]), float(edges[1])), (float(edges[2]), float(edges[3])))
            yield Pair(f"{name} + {other}", (text, said), np.concatenate(parts), spans)
            made += 1


def binned(scores: npt.NDArray[np.float64], step: float, seconds: float) -> npt.NDArray[np.float64]:
    """Absolute relevance per :data:`STEP` of the recording."""
    at = ((np.arange(len(scores)) + 0.5) * step / STEP).astype(int)
    whole = np.bincount(at, np.abs(scores), minlength=int(np.ceil(seconds / STEP)))
    return whole[: int(np.ceil(seconds / STEP))]


def measured(parts: npt.NDArray[np.float64], span: tuple[float, float]) -> dict[str, float]:
    """The share of the relevance inside a span, and whether the largest part is there."""
    middle = (np.arange(len(parts)) + 0.5) * STEP
    inside = (middle >= span[0]) & (middle < span[1])
    total = float(parts.sum())
    return {"share": float(parts[inside].sum()) / total if total else 0.0, "hit": float(inside[int(parts.argmax())])}


def rows_of(adapter: Any, pair: Pair, part: int) -> list[Row]:
    """One row per composite, for a word of sentence ``part`` (0 or 1)."""
    prompt = adapter.prepare(prompt_for(adapter, None, "en"), {"audio": (pair.samples, RATE)}).tensors
    seconds = len(pair.samples) / RATE
    texts = [f" {t[0].upper()}{t[1:]}." for t in pair.texts]
    ids = [adapter.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    text, span = texts[part], pair.spans[part]
    longest = max(text.split(), key=len)
    before = len(adapter.tokenizer(text[: text.index(longest) - 1], add_special_tokens=False)["input_ids"])
    said = [*(ids[0] if part else []), *ids[part][:before]]
    decoder = torch.cat([prompt["decoder_input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
    inputs = {k: v for k, v in prompt.items() if not k.startswith("decoder_")} | {"decoder_input_ids": decoder}
    out = []
    for composite in COMPOSITES:
        found = attribute(adapter, inputs, ids[part][before], composite=composite, through_encoder=True)
        (states,) = found.spans_of("audio")
        own = found.scores[states.start : states.stop].double().numpy()
        frames = over_time(found, 0.01).double().numpy()
        out.append({
            "sentence": part, "word": longest, "token": found.target_token, "composite": composite, "logit": found.logit,
            "chance": (span[1] - span[0]) / seconds,
            "states": measured(binned(own, float(states.seconds or 0), seconds), span),
            "frames": measured(binned(frames, 0.01, seconds), span),
            "sum_states": float(own.sum()), "sum_frames": float(frames.sum()),
        })  # fmt: skip
    return out


def interval(values: list[list[float]], seed: int = 0) -> tuple[float, float, float]:
    """Mean over recordings, and 95 % of 1000 bootstrap resamples of these."""
    means = np.array([np.mean(v) for v in values])
    drawn = np.random.default_rng(seed).integers(0, len(means), (1000, len(means)))
    low, high = np.quantile(means[drawn].mean(1), [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def table(rows: list[Row]) -> str:
    """Markdown of all measured recordings."""
    chance = interval([[r["chance"] for r in clip["rows"] if r["composite"] == COMPOSITES[0]] for clip in rows])
    lines = [
        f"{len(rows)} recordings, one word of each. Chance: {shown(chance)}.",
        "",
        "| rules | share, states | share, input frames | largest 100 ms, states | largest 100 ms, input frames |",
        "|---|---|---|---|---|",
    ]
    for composite in COMPOSITES:
        cells = []
        for measure in ("share", "hit"):
            for place in ("states", "frames"):
                every = [[r[place][measure] for r in clip["rows"] if r["composite"] == composite] for clip in rows]
                cells.append(shown(interval(every)))
        lines.append(f"| {composite} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: tuple[float, float, float]) -> str:
    mean, low, high = (f"{v:.2f}".removeprefix("0") for v in value)
    return f"{mean} ({low}–{high})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Where in a recording the relevance of a word is.")
    parser.add_argument("--limit", type=int, default=50, help="number of recordings")
    parser.add_argument("--table", action="store_true", help="print the committed table")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(RESULTS.read_text())["rows"]))
        return
    adapter = limelight.load(MODEL)
    folder = CACHE / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with RowLog(folder / "places.jsonl") as log:
        known = {r["id"]: r for r in log.rows}
        for number, pair in enumerate(pairs(given.limit)):
            row = known.get(pair.id) or {
                "id": pair.id,
                "seconds": len(pair.samples) / RATE,
                "rows": rows_of(adapter, pair, number % 2),
            }
            if pair.id not in known:
                log.append(row)
            rows.append(row)
            print(f"{len(rows)}/{given.limit} {pair.id}", flush=True)
    RESULTS.write_text(
        json.dumps({"model": MODEL, "git": git_hash(), "versions": versions(), "rows": rows}, indent=1) + "\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
