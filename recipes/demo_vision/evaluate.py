"""Greedy accuracy, AUC and yes ratio in every cell, captions, and the probe: python -m recipes.demo_vision.evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedModel

from limelight.demo import language
from limelight.demo.probe import Probe
from limelight.demo.questions import CELLS, TEXT_SETS, Caption, captions, questions
from limelight.demo.scenes import OBJECTS, VISIBILITIES, Scene, Split
from recipes.demo_vision import model as nets
from recipes.demo_vision.text import Packer
from recipes.evaluation import evaluate

SHIPPED = Path(__file__).parents[2] / "src" / "limelight" / "demo" / "vision"


class Request(Protocol):
    """A question or a request for a caption; `text` is the whole user turn."""

    @property
    def text(self) -> str: ...


@torch.no_grad()
def features_of(model: LlavaForConditionalGeneration, scenes: list[Scene], batch: int = 100) -> Tensor:
    """Vision features of rendered scenes: [n, 49, d]."""
    parts = []
    for start in range(0, len(scenes), batch):
        pixels = np.stack([np.asarray(s.image()) for s in scenes[start : start + batch]])
        parts.append(nets.image_features(model, torch.from_numpy(pixels)))
    return torch.cat(parts)


@torch.no_grad()
def margins(
    model: PreTrainedModel, packer: Packer, items: Sequence[Request], features: Tensor, batch: int = 100
) -> Tensor:
    """logit("yes") - logit("no") of the first answer token: [n]."""
    yes, no = (packer.encode(" " + word)[0] for word in (language.YES, language.NO))
    out = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        lines = [packer.encode(q.text + " ASSISTANT:") for q in part]
        packed, ends = packer.plain(lines), torch.tensor([len(packer.prefix) + len(line) - 1 for line in lines])
        hidden = nets.decode(model, packed, features[start : start + batch])  # [n, t, d]
        logits = model.lm_head(hidden[torch.arange(len(part)), ends]).float()  # [n, vocabulary]
        out.append(logits[:, yes] - logits[:, no])
    return torch.cat(out)


@torch.no_grad()
def probe_margins(
    model: PreTrainedModel, probe: Probe, objects: list[str], features: Tensor, names: tuple[str, ...] = OBJECTS
) -> Tensor:
    """The probe's logit for each question's object: [n]."""
    logits = probe(model.model.multi_modal_projector(features))  # [n, names]
    return logits[torch.arange(len(objects)), [names.index(name) for name in objects]]


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive scores above a negative (ties count half)."""
    ranks = np.unique(scores, return_inverse=True)[1]
    counts = np.bincount(ranks)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[ranks]  # 1-based, ties share the mean
    n, m = int(positive.sum()), int((~positive).sum())
    return float((mean_rank[positive].sum() - n * (n + 1) / 2) / (n * m))


class DevCheck:
    """Quick evaluation of some dev cells during training; the images are encoded once."""

    CELLS = ("none/clear", "E-right/clear", "E-wrong/clear", "C-right/clear", "C-wrong/clear", "none/poor", "E-wrong/poor",
             "intact/clear", "random/clear", "adversarial/clear")  # fmt: skip

    def __init__(self, model: LlavaForConditionalGeneration, packer: Packer, n: int = 200) -> None:
        self.packer, self.sets = packer, {cell: questions("dev", cell, n, seed=7) for cell in self.CELLS}
        known: dict[str, Tensor] = {}
        self.features = {}
        for cell, items in self.sets.items():
            key = f"{items[0].scene.kind}/{items[0].visibility}"
            if key not in known:
                known[key] = features_of(model, [q.scene for q in items])
            self.features[cell] = known[key]

    def __call__(self, model: LlavaForConditionalGeneration) -> dict[str, tuple[float, float]]:
        """(accuracy, AUC) by cell."""
        out = {}
        for cell, items in self.sets.items():
            scores = margins(model, self.packer, items, self.features[cell]).numpy()
            truth = np.array([q.label == language.YES for q in items])
            out[cell] = (float(((scores > 0) == truth).mean()), auc(scores, truth))
        return out


@torch.no_grad()
def write_captions(
    model: PreTrainedModel, packer: Packer, items: Sequence[Request], features: Tensor, longest: int = 28
) -> list[str]:
    """Greedy answers; all sequences of a batch grow together (recomputed every token: small and simple)."""
    out = []
    for start in range(0, len(items), 50):
        part, seen = items[start : start + 50], features[start : start + 50]
        lines = [packer.encode(c.text + " ASSISTANT:") for c in part]
        answers: list[list[int]] = [[] for _ in part]
        for _ in range(longest):
            packed = packer.plain([line + answer for line, answer in zip(lines, answers, strict=True)])
            ends = torch.tensor([len(packer.prefix) + len(a) + len(b) - 1 for a, b in zip(lines, answers, strict=True)])
            hidden = nets.decode(model, packed, seen)  # [b, t, d]
            best = model.lm_head(hidden[torch.arange(len(part)), ends]).argmax(-1).tolist()  # [b]
            for answer, token in zip(answers, best, strict=True):
                if packer.eos not in answer:
                    answer.append(token)
            if all(packer.eos in answer for answer in answers):
                break
        out += [str(packer.tokenizer.decode(answer, skip_special_tokens=True)).strip() for answer in answers]
    return out


def chair(items: list[Caption], texts: list[str]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i and recall of the objects."""
    said = [language.mentioned(text) for text in texts]
    false = [len(words - c.objects) for words, c in zip(said, items, strict=True)]
    hits = sum(len(words & c.objects) for words, c in zip(said, items, strict=True))
    return {
        "chair_s": float(np.mean([n > 0 for n in false])),
        "chair_i": sum(false) / max(1, sum(map(len, said))),
        "recall": hits / sum(len(c.objects) for c in items),
    }


def report(folder: Path, split: Split, n: int, n_captions: int) -> None:
    """Prints the two tables."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    packer = Packer(AutoProcessor.from_pretrained(folder).tokenizer)
    probe, known = Probe.load(folder / "probe.safetensors"), dict[str, Tensor]()
    print(f"split {split}, {n} questions a cell, greedy\n")
    print("| cell | accuracy | AUC | yes ratio | probe accuracy | probe AUC |\n|---|---|---|---|---|---|")
    for cell in CELLS:
        items = questions(split, cell, n)
        key = f"{items[0].scene.kind}/{items[0].visibility}"
        if key not in known:
            known[key] = features_of(model, [q.scene for q in items])
        truth = np.array([q.label == language.YES for q in items])
        ours = margins(model, packer, items, known[key]).numpy()
        ceiling = probe_margins(model, probe, [q.object for q in items], known[key]).numpy()
        row = [((ours > 0) == truth).mean(), auc(ours, truth), (ours > 0).mean()]
        row += [((ceiling > 0) == truth).mean(), auc(ceiling, truth)]
        print(f"| {cell} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
    print(
        f"\ncaptions, greedy, {n_captions} a row\n\n| hint | visibility | CHAIR_s | CHAIR_i | recall |\n|---|---|---|---|---|"
    )
    for visibility in VISIBILITIES:
        for hint in TEXT_SETS:
            wanted = captions(split, hint, n_captions, visibility=visibility)
            key = f"captions/{visibility}"
            if key not in known:
                known[key] = features_of(model, [c.scene for c in wanted])
            scores = chair(wanted, write_captions(model, packer, wanted, known[key]))
            print(
                f"| {hint} | {visibility} | " + " | ".join(f"{value:.3f}" for value in scores.values()) + " |",
                flush=True,
            )


if __name__ == "__main__":
    evaluate(report, SHIPPED, __doc__, questions=1000)
