"""Transcripts one can trust: which words of Whisper the sound supports, measured on two models and real recordings.

    python -m bench.whisper                 both models (40 minutes of one core), bench/results/whisper.json
    python -m bench.whisper --only whisper-base --limit 40
    python -m bench.whisper --table         print the committed tables

Needs the weights (`make real`), a Debian system (`apt-get download` fetches the recordings into .cache/whisper), and for
the rows with a voice activity detector `pip install 'silero-vad[onnx-cpu]'`. Each clip is a row on disk: the same command
resumes. Thresholds for a model are chosen on the other model and on the other half of the recordings, see
`bench.whisper_table`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import limelight
from bench.whisper_data import CACHE, RATE, Clip, Samples, clips
from limelight.benchmarks.manifest import git_hash, versions
from limelight.benchmarks.rowlog import RowLog
from limelight.decoding.registry import strategy as by_name
from limelight.decoding.strategy import Strategy
from limelight.decoding.transcribe import prompt_for, token_limit
from limelight.grounding import score
from limelight.relevance.forward.stream import DualOutput, DualStream, modality_channel

RESULTS = Path(__file__).resolve().parent / "results" / "whisper.json"
MODELS = ("whisper-tiny.en", "whisper-base")
CONTRASTIVE: dict[str, Callable[[], Strategy]] = {  # on a part of the clips
    "AAD": lambda: by_name("aad"),
    "relevance-contrastive": lambda: limelight.relevance_contrastive(preset="transcripts"),
}
LONGEST = 100  # tokens of an answer: what repeats itself is cut there
Row = dict[str, Any]


@contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Process time in seconds, added under a name."""
    start = time.process_time()
    yield
    times[name] = times.get(name, 0.0) + time.process_time() - start


class Bench:
    """A loaded model, its prompt, and what it makes of silence."""

    def __init__(self, name: str) -> None:
        self.adapter = limelight.load(name)
        self.prompt = prompt_for(self.adapter, None, "en")
        self.config = self.adapter.model.generation_config
        self.ends = set(np.atleast_1d(self.config.eos_token_id).tolist())
        self.silence = self.encoded(np.zeros(RATE, np.float32), {})["encoder_outputs"]

    def encoded(self, samples: Samples, times: dict[str, float]) -> dict[str, Any]:
        """The decoder's inputs; the encoder runs once for everything that is measured on a clip."""
        with timed(times, "features"):
            tensors = dict(self.adapter.prepare(self.prompt, {"audio": (samples, RATE)}).tensors)
        with timed(times, "encoder"), torch.no_grad():
            outputs = self.adapter.model.get_encoder()(tensors.pop("input_features"))
        return {**tensors, "encoder_outputs": outputs}

    def said(self, inputs: dict[str, Any], seconds: float, strategy: str) -> limelight.Generation:
        most = min(token_limit(seconds), LONGEST)
        return limelight.generate(
            self.adapter, messages=inputs, strategy=strategy, relevance=False, max_new_tokens=most
        )

    def forced(self, inputs: dict[str, Any], tokens: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and Phi of the sound ``[n, V]`` at each token of an answer, and the logits ``[V]`` at its start token, in
        one forward."""
        adapter = self.adapter
        with torch.inference_mode(False), torch.no_grad(), adapter.listed():
            call = adapter.capture(inputs).cloned()
            media = (call.modality(adapter.modality_ids(inputs)) > 0) & call.mask
            start, later = call.length - call.front, len(tokens) - 1
            if later:
                call = call.appended(adapter.embed(torch.tensor([tokens[:-1]])))
                media = torch.nn.functional.pad(media, (0, later))
            stream = DualStream(adapter, call, [modality_channel(media, call.mask)], reserve=0, continues=False)
            hidden = stream.every_position()[:, 0]
            logits, phi = stream.heads(DualOutput(hidden[:, start - 1 : start - 1 + len(tokens)]))
            return logits, phi[0], stream.heads(DualOutput(hidden[:, :1]))[0][0]

    def plain(self, inputs: dict[str, Any], tokens: Sequence[int]) -> Tensor:
        """Logits ``[n, V]`` of the unchanged model at each token of an answer."""
        ids = inputs["decoder_input_ids"]
        longer = torch.cat([ids, torch.tensor([tokens[:-1]], dtype=ids.dtype)], 1)
        with torch.no_grad():
            out = self.adapter.model(
                encoder_outputs=inputs["encoder_outputs"], decoder_input_ids=longer, use_cache=False
            )
        logits: Tensor = out.logits[0, ids.shape[1] - 1 :].float()
        return logits

    def allowed(self, logits: Tensor) -> Tensor:
        """Without the tokens that Whisper's own decoding never takes."""
        out = logits.clone()
        out[:, list(self.config.suppress_tokens or ())] = -torch.inf
        out[0, list(self.config.begin_suppress_tokens or ())] = -torch.inf
        return out

    def measured(self, clip: Clip, vad: Callable[[Samples], float] | None) -> Row:
        """Everything that is known of a clip and of its transcript, token by token."""
        samples = clip.make()
        times: dict[str, float] = {}
        seconds = len(samples) / RATE
        inputs = self.encoded(samples, times)
        with timed(times, "decoder"):
            said = self.said(inputs, seconds, "greedy")
        tokens = list(said.token_ids)
        with timed(times, "ours"):
            logits, phi, first = self.forced(inputs, tokens)
            among = score.counted(phi, logits, self.adapter.known_tokens)
            mean, deviation = score.moments(phi, among)
        with timed(times, "silence"):
            quiet = self.plain({**inputs, "encoder_outputs": self.silence}, tokens)
        ids = torch.tensor(tokens)[:, None]

        def own(values: Tensor) -> list[float]:
            return [round(float(v), 4) for v in values.gather(-1, ids)[:, 0]]

        logprobs, silent = (self.allowed(x).log_softmax(-1) for x in (logits, quiet))
        finite = logprobs.masked_fill(logprobs.isneginf(), 0.0)
        z = score.standardised(phi, mean, deviation)
        row: Row = {
            "id": clip.id, "kind": clip.kind, "source": clip.source, "fold": clip.fold, "seconds": round(seconds, 3),
            "snr": clip.snr, "noise": clip.noise, "text": clip.text, "said": said.text, "tokens": tokens,
            "spelled": [s.text for s in said.steps], "ended": tokens[-1] in self.ends,
            "logprob": own(logprobs), "entropy": [round(float(v), 4) for v in -(finite.exp() * finite * ~logprobs.isneginf()).sum(-1)],
            "pmi": own((logprobs - silent).nan_to_num(0.0, 0.0, 0.0)), "phi": own(phi), "z": own(z), "centred": own(phi - mean),
            "rival": [round(float(v), 4) if v.isfinite() else None for v in score.rival_score(z, logits, ids[:, 0])],
            "no_speech": round(float(first.softmax(-1)[self.config.no_timestamps_token_id - 1]), 6),
        }  # fmt: skip
        if vad is not None:
            with timed(times, "vad"):
                row["voiced"] = vad(samples)
        return {**row, "times": {k: round(v, 4) for k, v in times.items()}}

    def contrasted(self, clip: Clip, strategy: str) -> Row:
        """What a contrastive decoder says of a clip."""
        samples = clip.make()
        prompt = self.adapter.prepare(self.prompt, {"audio": (samples, RATE)})
        start = time.process_time()
        most = min(token_limit(len(samples) / RATE), LONGEST)
        said = limelight.generate(
            self.adapter, messages=prompt, strategy=CONTRASTIVE[strategy](), relevance=False, max_new_tokens=most
        )
        return {"id": f"{clip.id} {strategy}", "clip": clip.id, "strategy": strategy, "said": said.text,
                "seconds": round(time.process_time() - start, 4)}  # fmt: skip


def detector() -> Callable[[Samples], float] | None:
    """Silero's voice activity detector: seconds of speech of a clip; None where it is not installed."""
    try:
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError:
        return None
    model = load_silero_vad(onnx=True)

    def voiced(samples: Samples) -> float:
        found = get_speech_timestamps(torch.from_numpy(samples), model)
        return float(round(sum(f["end"] - f["start"] for f in found) / RATE, 3))

    return voiced


def part_of(found: Sequence[Clip]) -> list[Clip]:
    """A sixth of the clips without words and of the speech, clean and at 0 dB: for decoders that cost more."""
    wanted = [c for c in found if c.kind != "speech" or c.snr in (None, 0)]
    return [c for c in wanted if int.from_bytes(c.source.encode()[-3:], "big") % 6 == 0]


def run(name: str, folder: Path, found: Sequence[Clip], contrastive: Iterable[str]) -> None:
    """Measure what is not yet on disk."""
    vad = detector()
    with RowLog(folder / f"{name}.jsonl") as log:
        done = {r["id"] for r in log.rows}
        todo: list[tuple[str, Callable[[Bench], Row]]] = [
            (c.id, partial(Bench.measured, clip=c, vad=vad)) for c in found
        ]
        for strategy in contrastive:
            todo += [
                (f"{c.id} {strategy}", partial(Bench.contrasted, clip=c, strategy=strategy)) for c in part_of(found)
            ]
        todo = [(i, make) for i, make in todo if i not in done]
        if not todo:
            return
        bench, begun = Bench(name), time.time()
        for k, (_, make) in enumerate(todo, start=1):
            log.append(make(bench))
            if k % 20 == 0 or k == len(todo):
                left = (time.time() - begun) / k * (len(todo) - k)
                print(f"{name}: {k} of {len(todo)}, about {left / 60:.0f} minutes left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the committed tables")
    parser.add_argument("--only", choices=MODELS, help="measure one model")
    parser.add_argument("--limit", type=int, help="clips of every kind (default: all)")
    parser.add_argument("--out", type=Path, default=CACHE / "rows", help="where measured rows are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    from bench import whisper_table

    if not args.table:
        torch.set_num_threads(1)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        found = clips()
        if args.limit is not None:
            counts: dict[tuple[str, int | None], int] = {}
            kept = []
            for c in found:
                counts[c.kind, c.snr] = counts.get((c.kind, c.snr), 0) + 1
                if counts[c.kind, c.snr] <= args.limit:
                    kept.append(c)
            found = kept
        for name in MODELS:
            if args.only in (None, name):
                run(name, args.out, found, CONTRASTIVE)
        wanted = {c.id for c in clips()}
        rows = {name: [r for r in measured_rows(name, args.out) if r.get("clip", r["id"]) in wanted] for name in MODELS}
        kept_versions = ("python", "limelight", "torch", "transformers", "numpy")
        about = {"git": git_hash(), "versions": {k: versions()[k] for k in kept_versions}}
        results = {"session": about, **whisper_table.results(rows)}
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(results, indent=1) + "\n")
    print(whisper_table.table(json.loads(args.results.read_text())))


def measured_rows(name: str, folder: Path = CACHE / "rows") -> list[Row]:
    """The rows of a model that are on disk, those of contrastive decoders last."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
