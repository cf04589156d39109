"""Writes the trained model, its processor, the probe and the held-out examples into the package."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from limelight.demo import language
from limelight.demo.probe import Probe
from limelight.demo.questions import questions
from limelight.demo.scenes import SIZE
from recipes.demo_vision.data import PATCH, Pictures
from recipes.demo_vision.evaluate import features_of, margins, probe_margins
from recipes.demo_vision.model import media_tokens
from recipes.demo_vision.text import TEMPLATE, Packer

RULE = (
    "Pictures of the split 'demo' (neither dev nor test), each cell's questions in order: the first three of E-wrong/clear and of "
    "C-wrong/clear that greedy decoding gets wrong although it is right without the hint and the probe of the image "
    "tokens is right; and the first two of adversarial/clear that greedy gets wrong and the probe right."
)


def processor_for(packer: Packer) -> LlavaProcessor:
    """The LLaVA processor of the miniature: 112 x 112 pixels scaled to -1..1, 49 image tokens."""
    size = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(
        images, packer.tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def save(model: LlavaForConditionalGeneration, packer: Packer, folder: Path) -> None:
    """Model, configs and processor files."""
    save_model(model, packer, processor_for(packer), folder)


def save_model(
    model: PreTrainedModel, packer: Packer, processor: ProcessorMixin, folder: Path, longest: int = 32
) -> None:
    """A miniature and its processor; answers are greedy and at most `longest` tokens unless asked otherwise."""
    settings, tokenizer = model.generation_config, packer.tokenizer
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    settings.pad_token_id, settings.do_sample, settings.max_new_tokens = tokenizer.pad_token_id, False, longest
    model.set_attn_implementation("sdpa")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def train_probe(
    model: LlavaForConditionalGeneration, data: Pictures, held: list[np.ndarray], steps: int = 1500, batch: int = 128
) -> Probe:
    """The probe, on the projected image tokens of the training pictures, as many broken trios as whole ones."""
    kinds = np.array([s.kind for s in data.scenes])
    rate = np.where(kinds == "broken", (kinds == "trio").sum() / max(1, (kinds == "broken").sum()), 1.0)  # [n]
    return fit_probe(model, torch.from_numpy(data.present).float(), rate, held, steps, batch)


def fit_probe(
    model: PreTrainedModel,
    present: torch.Tensor,
    rate: np.ndarray,
    held: list[np.ndarray],
    steps: int,
    batch: int = 128,
) -> Probe:
    """A probe for what is present [n, objects] in the projected features; `rate` [n]: how often each one is drawn."""
    torch.manual_seed(0)
    rng, edges = np.random.default_rng(0), np.cumsum([0, *map(len, held)])
    rates = [rate[a:b] / rate[a:b].sum() for a, b in itertools.pairwise(edges)]
    share = (present * torch.from_numpy(rate / rate.sum()).float()[:, None]).sum(0)  # [objects]
    weight = (1 - share) / share.clamp(min=1e-3)  # [objects]
    probe = Probe(model.config.text_config.hidden_size, objects=present.shape[1])
    optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        part = int(rng.integers(len(held)))
        rows = np.sort(rng.choice(len(held[part]), batch, p=rates[part]))
        with torch.no_grad():
            tokens = media_tokens(model, torch.from_numpy(held[part][rows]).float())  # [b, 49, d]
        loss = nn.functional.binary_cross_entropy_with_logits(
            probe(tokens), present[edges[part] + rows], pos_weight=weight
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return probe.eval()


@torch.no_grad()
def write_examples(
    model: LlavaForConditionalGeneration, packer: Packer, probe: Probe, folder: Path, n: int = 80
) -> int:
    """Pictures (PNG) and examples.json, selected by `RULE`; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    rows = []
    for cell, wanted in (("E-wrong/clear", 3), ("C-wrong/clear", 3), ("adversarial/clear", 2)):
        items = questions("demo", cell, n)
        seen = features_of(model, [q.scene for q in items])
        truth = torch.tensor([q.label == language.YES for q in items])
        bare = questions("demo", "none/clear", n) if "wrong" in cell else items
        misled = (margins(model, packer, items, seen) > 0) != truth
        able = (probe_margins(model, probe, [q.object for q in items], seen) > 0) == truth
        if "wrong" in cell:
            able &= (margins(model, packer, bare, seen) > 0) == truth
        for number in torch.nonzero(misled & able).flatten().tolist()[:wanted]:
            q, name = items[number], f"{cell.split('/')[0]}-{number:03d}.png"
            q.scene.image().save(folder / name, optimize=True)
            rows.append({
                "id": q.id, "image": name, "text": q.text, "hint": q.hint, "question": q.question, "label": q.label,
                "greedy": language.NO if q.label == language.YES else language.YES, "cell": q.cell,
                "object": q.object, "objects": {key: list(box) for key, box in q.scene.boxes.items()},
            })  # fmt: skip
    (folder / "examples.json").write_text(json.dumps({"rule": RULE, "examples": rows}, indent=1) + "\n")
    return len(rows)
