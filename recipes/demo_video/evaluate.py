"""Greedy accuracy, AUC and yes ratio in every cell, captions, and the probe: python -m recipes.demo_video.evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from limelight.demo import film_language as language
from limelight.demo.film_questions import CELLS, SETS, TOPICS, FilmRequest, captions, questions
from limelight.demo.films import HALF, NAMES, Film, render
from limelight.demo.language import NO, YES
from limelight.demo.probe import FrameProbe
from limelight.demo.scenes import VISIBILITIES, Split
from recipes.demo_video import model as nets
from recipes.demo_video.data import TOKENS, coverage
from recipes.demo_video.text import MARKS, as_words
from recipes.demo_vision.evaluate import auc, margins, write_captions
from recipes.demo_vision.model import decode, media_tokens
from recipes.demo_vision.text import Packer
from recipes.evaluation import evaluate

SHIPPED = Path(__file__).parents[2] / "src" / "limelight" / "demo" / "video"


def features_of(model: LlavaOnevisionForConditionalGeneration, films: Sequence[Film], batch: int = 50) -> Tensor:
    """Vision features of films: [n, 8, 36, d]."""
    parts = []
    for start in range(0, len(films), batch):
        pixels = np.stack([f.pixels() for f in films[start : start + batch]])
        parts.append(nets.film_features(model, torch.from_numpy(pixels)))
    return torch.cat(parts)


@torch.no_grad()
def probe_margins(
    model: LlavaOnevisionForConditionalGeneration, probe: FrameProbe, items: Sequence[FilmRequest], features: Tensor
) -> Tensor:
    """log P(yes) - log P(no) of each question by the probe, whose frames are taken to be independent: [n]."""
    shown = probe(media_tokens(model, features)).double().sigmoid()  # [n, frames, objects]
    out = []
    for item, frames in zip(items, shown, strict=True):
        onsets = [onset(frames[:, NAMES.index(name)]) for name in item.objects]  # each [frames]
        if item.topic == "what":
            yes = 1 - (1 - frames[:, NAMES.index(item.objects[0])]).prod()
        elif item.topic == "when":
            first = onsets[0][:HALF].sum() / onsets[0].sum()
            yes = first if "first" in item.bare else 1 - first
        else:
            early = (onsets[0] * (onsets[1].sum() - onsets[1].cumsum(0))).sum()
            late = (onsets[1] * (onsets[0].sum() - onsets[0].cumsum(0))).sum()
            early = early / (early + late).clamp(min=1e-12)
            yes = early if "before" in item.bare else 1 - early
        out.append(torch.logit(yes, eps=1e-6))
    return torch.stack(out)


def onset(shown: Tensor) -> Tensor:
    """Chance that an object appears first in each frame, from the chance of each frame to show it [frames]."""
    before = torch.cat([torch.ones(1, dtype=shown.dtype), (1 - shown).cumprod(0)[:-1]])
    return shown * before


def caption_scores(texts: Sequence[str], items: Sequence[FilmRequest]) -> dict[str, float]:
    """CHAIR_s, CHAIR_i and recall of objects, recall of events, and captions whose objects are exactly right, in order.

    The last: all events right and in order.
    """
    said = [language.mentioned(text) for text in texts]
    false = [sum(n not in i.film.names for n in names) for names, i in zip(said, items, strict=True)]
    events = [language.told(text) for text in texts]
    return {
        "CHAIR_s": float(np.mean([n > 0 for n in false])),
        "CHAIR_i": sum(false) / max(1, sum(map(len, said))),
        "recall": sum(len(set(n) & set(i.film.names)) for n, i in zip(said, items, strict=True))
        / sum(len(i.film.names) for i in items),
        "event recall": sum(len(set(e) & set(i.film.events)) for e, i in zip(events, items, strict=True))
        / sum(len(i.film.events) for i in items),
        "objects in order": float(np.mean([tuple(n) == i.film.names for n, i in zip(said, items, strict=True)])),
        "all in order": float(np.mean([tuple(e) == i.film.events for e, i in zip(events, items, strict=True)])),
    }


class DevCheck:
    """A quick look at some dev cells during training; the films are encoded once."""

    CELLS = (
        "what-none/clear", "when-none/clear", "order-none/clear", "what-E-wrong/clear", "what-C-wrong/clear",
        "when-E-wrong/clear", "order-E-wrong/clear", "what-none/poor", "when-none/poor", "order-none/poor",
    )  # fmt: skip

    def __init__(self, model: LlavaOnevisionForConditionalGeneration, packer: Packer, n: int) -> None:
        self.packer, self.sets = packer, {cell: questions("dev", cell, n, seed=7) for cell in self.CELLS}
        self.captions = captions("dev", n=max(2, n // 4), seed=7)
        known: dict[str, Tensor] = {}
        self.features = {}
        for cell, items in self.sets.items():
            key = cell.split("/")[1]
            if key not in known:
                known[key] = features_of(model, [q.film for q in items])
            self.features[cell] = known[key]
        self.seen = features_of(model, [c.film for c in self.captions])

    def __call__(self, model: LlavaOnevisionForConditionalGeneration) -> dict[str, str]:
        """Accuracy and AUC by cell; CHAIR_i, recall and order of captions."""
        out = {}
        for cell, items in self.sets.items():
            scores = margins(model, self.packer, items, self.features[cell]).numpy()
            truth = np.array([q.truth == YES for q in items])
            out[cell] = f"{float(((scores > 0) == truth).mean()):.2f}/{auc(scores, truth):.2f}"
        table = caption_scores(write_captions(model, self.packer, self.captions, self.seen, 36), self.captions)
        out["caption"] = "/".join(f"{table[key]:.2f}" for key in ("CHAIR_i", "recall", "objects in order"))
        return out


@torch.no_grad()
def check_words(model: LlavaOnevisionForConditionalGeneration, packer: Packer, mark: Tensor, n: int = 60) -> str:
    """Accuracy and AUC on clear dev films written as words, by topic: what the language stage has learnt."""
    vocabulary, rng, found = packer.tokenizer.get_vocab(), np.random.default_rng(5), []
    yes, no = (packer.encode(" " + word)[0] for word in (YES, NO))
    for topic in TOPICS:
        items = questions("dev", f"{topic}-none/clear", n, seed=8)
        lines = [packer.encode(q.text + " ASSISTANT:") for q in items]
        packed = packer.plain(lines)
        where = slice(packer.first, packer.first + TOKENS)
        words = [as_words(rng, coverage(render(q.film)[1]), q.film, vocabulary) for q in items]
        packed.ids[:, where] = torch.from_numpy(np.stack(words))
        written = torch.zeros(*packed.ids.shape, len(mark))
        written[:, where] = mark
        ends = torch.tensor([len(packer.prefix) + len(line) - 1 for line in lines])
        hidden = decode(model, packed, None, written)[torch.arange(n), ends]  # [n, d]
        logits = model.lm_head(hidden).float()
        scores, truth = (logits[:, yes] - logits[:, no]).numpy(), np.array([q.truth == YES for q in items])
        found.append(f"{topic} {((scores > 0) == truth).mean():.2f}/{auc(scores, truth):.2f}")
    return "written dev films: " + "  ".join(found)


def report(folder: Path, split: Split, n: int, n_captions: int) -> None:
    """Prints the two tables."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    packer = Packer(AutoTokenizer.from_pretrained(folder), MARKS["video_token"], TOKENS)
    probe, known = FrameProbe.load(folder / "probe.safetensors"), dict[str, Tensor]()

    def encoded(key: str, items: list[FilmRequest]) -> Tensor:
        if key not in known:
            known[key] = features_of(model, [q.film for q in items])
        return known[key]

    print(f"split {split}, {n} questions a cell, greedy\n")
    print("| cell | accuracy | AUC | yes ratio | probe accuracy | probe AUC |\n|---|---|---|---|---|---|")
    for cell in CELLS:
        items = questions(split, cell, n)
        seen = encoded(cell.split("/")[1], items)
        truth = np.array([q.truth == YES for q in items])
        ours = margins(model, packer, items, seen).numpy()
        ceiling = probe_margins(model, probe, items, seen).numpy()
        row = [((ours > 0) == truth).mean(), auc(ours, truth), (ours > 0).mean()]
        row += [((ceiling > 0) == truth).mean(), auc(ceiling, truth)]
        print(f"| {cell} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
    print(f"\ncaptions, greedy, {n_captions} a row\n")
    names = ("CHAIR_s", "CHAIR_i", "recall", "event recall", "objects in order", "all in order")
    print(f"| hint | visibility | {' | '.join(names)} |\n|{'---|' * (len(names) + 2)}")
    for visibility in VISIBILITIES:
        for hint in SETS:
            wanted = captions(split, hint, n_captions, visibility=visibility)
            texts = write_captions(model, packer, wanted, encoded(f"captions/{visibility}", wanted), 36)
            row = list(caption_scores(texts, wanted).values())
            print(f"| {hint} | {visibility} | " + " | ".join(f"{v:.3f}" for v in row) + " |", flush=True)


if __name__ == "__main__":
    evaluate(report, SHIPPED, __doc__)
