"""Greedy accuracy in every cell, captions, transcription, and the probe: python -m recipes.demo_audio.evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from limelight.benchmarks.scorers.wer import transcript_columns
from limelight.demo import sound_language as language
from limelight.demo.language import YES
from limelight.demo.probe import Probe
from limelight.demo.sound_questions import CELLS, SETS, SPEECH_SETS, Request, captions, questions, transcriptions
from limelight.demo.sounds import EVENTS, Recording, Split
from recipes.demo_audio import model as nets
from recipes.demo_audio.data import TOKENS, mel
from recipes.demo_audio.text import AROUND, MARKS
from recipes.demo_vision.evaluate import auc, margins, probe_margins, write_captions
from recipes.demo_vision.text import Packer
from recipes.evaluation import evaluate

SHIPPED = Path(__file__).parents[2] / "src" / "limelight" / "demo" / "audio"


@torch.no_grad()
def features_of(model: Qwen2AudioForConditionalGeneration, recordings: list[Recording], batch: int = 50) -> Tensor:
    """Audio features of made recordings: [n, 50, d]."""
    parts = []
    for start in range(0, len(recordings), batch):
        spectra = mel([r.samples() for r in recordings[start : start + batch]])
        parts.append(nets.audio_features(model, torch.from_numpy(spectra)))
    return torch.cat(parts)


def chair(said: Sequence[list[str]], truth: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i, recall, and the share of captions that name exactly the right sounds in the right order."""
    false = [sum(word not in there for word in words) for words, there in zip(said, truth, strict=True)]
    hits = sum(len(set(words) & set(there)) for words, there in zip(said, truth, strict=True))
    return {
        "chair_s": float(np.mean([n > 0 for n in false])),
        "chair_i": sum(false) / max(1, sum(map(len, said))),
        "recall": hits / sum(map(len, truth)),
        "in order": float(np.mean([tuple(words) == there for words, there in zip(said, truth, strict=True)])),
    }


def word_errors(texts: Sequence[str], items: Sequence[Request]) -> float:
    """Return the word error rate; for recordings without speech, invented words per recording."""
    if not items[0].truth:
        return float(np.mean([len(text.split()) for text in texts]))
    rows = [transcript_columns(a.truth, text) for text, a in zip(texts, items, strict=True)]
    return sum(r["errors"] for r in rows) / sum(r["words"] for r in rows)


class DevCheck:
    """Quick evaluation of some dev cells during training; the recordings are encoded once."""

    CELLS = (
        "none/clear",
        "E-right/clear",
        "E-wrong/clear",
        "C-right/clear",
        "C-wrong/clear",
        "none/poor",
        "E-wrong/poor",
    )
    SPEECH = ("usual/clear", "broken/clear", "digits/clear", "broken/poor", "noise")

    def __init__(self, model: Qwen2AudioForConditionalGeneration, packer: Packer, n: int) -> None:
        self.packer, self.n = packer, n
        sets = {cell: questions("dev", cell, n, seed=7) for cell in self.CELLS}
        sets["caption"] = captions("dev", n=max(2, n // 4), seed=7)
        sets |= {name: transcriptions("dev", name, max(2, n // 4), seed=7) for name in self.SPEECH}
        known: dict[str, Tensor] = {}
        self.sets, self.features = sets, dict[str, Tensor]()
        for name, items in sets.items():
            key = f"events/{name.split('/')[1]}" if name in self.CELLS else name
            if key not in known:
                known[key] = features_of(model, [q.recording for q in items])
            self.features[name] = known[key]

    def __call__(self, model: Qwen2AudioForConditionalGeneration) -> dict[str, str]:
        """Accuracy and AUC by cell; CHAIR_i, recall and order of captions; word error rates."""
        out = {}
        for name, items in self.sets.items():
            if name in self.CELLS:
                scores = margins(model, self.packer, items, self.features[name]).numpy()
                truth = np.array([q.truth == YES for q in items])
                out[name] = f"{float(((scores > 0) == truth).mean()):.2f}/{auc(scores, truth):.2f}"
                continue
            texts = write_captions(model, self.packer, items, self.features[name])
            if name == "caption":
                table = chair([language.mentioned(t) for t in texts], [a.truth for a in items])
                out[name] = f"{table['chair_i']:.2f}/{table['recall']:.2f}/{table['in order']:.2f}"
            else:
                out[name] = f"{word_errors(texts, items):.2f}"
        return out


def report(folder: Path, split: Split, n: int, n_captions: int) -> None:
    """Prints the three tables."""
    model = Qwen2AudioForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    packer = Packer(AutoProcessor.from_pretrained(folder).tokenizer, MARKS["audio_token"], TOKENS, AROUND)
    probe, known = Probe.load(folder / "probe.safetensors"), dict[str, Tensor]()

    def encoded(key: str, items: list[Request]) -> Tensor:
        if key not in known:
            known[key] = features_of(model, [q.recording for q in items])
        return known[key]

    print(f"split {split}, {n} questions a cell, greedy\n")
    print("| cell | accuracy | AUC | yes ratio | probe accuracy | probe AUC |\n|---|---|---|---|---|---|")
    for cell in sorted(CELLS, key=lambda c: (SETS.index(c.split("/")[0]), CELLS.index(c))):
        items = questions(split, cell, n)
        seen = encoded(cell.split("/")[1], items)
        truth = np.array([q.truth == YES for q in items])
        ours = margins(model, packer, items, seen).numpy()
        ceiling = probe_margins(model, probe, [q.object for q in items], seen, EVENTS).numpy()
        row = [((ours > 0) == truth).mean(), auc(ours, truth), (ours > 0).mean()]
        row += [((ceiling > 0) == truth).mean(), auc(ceiling, truth)]
        print(f"| {cell} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
    print(f"\ncaptions, greedy, {n_captions} a row\n\n| hint | clarity | CHAIR_s | CHAIR_i | recall | in order |")
    print("|---|---|---|---|---|---|")
    for clarity in ("clear", "medium", "poor"):
        for hint in SETS:
            wanted = captions(split, hint, n_captions, clarity=clarity)  # type: ignore[arg-type]
            texts = write_captions(model, packer, wanted, encoded(f"captions/{clarity}", wanted))
            scores = chair([language.mentioned(t) for t in texts], [a.truth for a in wanted])
            print(f"| {hint} | {clarity} | " + " | ".join(f"{v:.3f}" for v in scores.values()) + " |", flush=True)
    print(f"\ntranscription, greedy, {n_captions} a row\n\n| set | word error rate, or words invented |\n|---|---|")
    for name in SPEECH_SETS:
        said = transcriptions(split, name, n_captions)
        texts = write_captions(model, packer, said, features_of(model, [a.recording for a in said]))
        print(f"| {name} | {word_errors(texts, said):.3f} |", flush=True)


if __name__ == "__main__":
    evaluate(report, SHIPPED, __doc__)
