"""Writes the trained model, its processor, the probe and the held-out examples into the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from limelight.demo.film_questions import questions
from limelight.demo.films import RATE, SIZE, Film
from limelight.demo.language import NO, YES
from limelight.demo.probe import FrameProbe
from limelight.media.video_tensors import plain_class, processor_class
from recipes.demo_video.data import GRID, Films
from recipes.demo_video.evaluate import features_of, probe_margins
from recipes.demo_video.text import TEMPLATE
from recipes.demo_vision.evaluate import margins
from recipes.demo_vision.model import media_tokens
from recipes.demo_vision.ship import save_model
from recipes.demo_vision.text import Packer

EXAMPLE_SIZE = 192  # pixels of a shipped film, four times what the model sees
RULE = (
    "Films of the split 'demo' (neither dev nor test), each cell's questions in order: the first two of what-E-wrong/clear, "
    "what-C-wrong/clear, when-E-wrong/clear and order-E-wrong/clear that greedy decoding gets wrong although it is right "
    "without the hint and the probe of the video tokens is right; one of the two with the answer yes if there is one."
)


def processor_for(packer: Packer) -> Any:
    """The LLaVA-OneVision processor of the miniature: frames of 48 x 48 pixels scaled to -1..1, 9 tokens a frame."""
    square = {"height": SIZE, "width": SIZE}
    shared: dict[str, Any] = dict(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    video = plain_class("llava_onevision")
    return processor_class("llava_onevision", video)(
        LlavaOnevisionImageProcessorPil(image_grid_pinpoints=[[SIZE, SIZE]], **shared), packer.tokenizer, video(**shared),
        num_image_tokens=GRID * GRID, vision_feature_select_strategy="full", chat_template=TEMPLATE,
    )  # fmt: skip


def save(model: LlavaOnevisionForConditionalGeneration, packer: Packer, folder: Path) -> None:
    """Model, configs and processor files; answers are greedy and at most 48 tokens unless asked otherwise.

    The weights are stored in float16; the config says float32, so that they are loaded and computed with as such.
    """
    save_model(model, packer, processor_for(packer), folder, longest=48)
    stored = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(stored).items()}, stored, {"format": "pt"})


def rounded(model: LlavaOnevisionForConditionalGeneration) -> LlavaOnevisionForConditionalGeneration:
    """The model with its weights rounded to float16, as they are shipped."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half().float())
    return model


def train_probe(
    model: LlavaOnevisionForConditionalGeneration, data: Films, held: np.ndarray, steps: int = 600, batch: int = 48
) -> FrameProbe:
    """The probe, on the projected video tokens of the training films: which objects each frame shows."""
    torch.manual_seed(0)
    rng, present = np.random.default_rng(0), torch.from_numpy(data.present).float()  # [n, frames, objects]
    share = present.mean((0, 1))  # [objects]
    probe = FrameProbe(model.config.text_config.hidden_size, objects=present.shape[2])
    optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    weight = ((1 - share) / share.clamp(min=1e-3)).sqrt()
    for _ in range(steps):
        rows = np.sort(rng.integers(0, len(held), batch))
        with torch.no_grad():
            tokens = media_tokens(model, torch.from_numpy(held[rows]).float())  # [b, 73, d]
        loss = nn.functional.binary_cross_entropy_with_logits(probe(tokens), present[rows], pos_weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return probe.eval()


def write_film(film: Film, path: Path, size: int = EXAMPLE_SIZE) -> None:
    """Write a film as an MP4 file (H.264), its frames as they are drawn at that size."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=int(RATE), options={"crf": "18", "preset": "veryslow"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for frame in film.pixels(size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@torch.no_grad()
def write_examples(
    model: LlavaOnevisionForConditionalGeneration, packer: Packer, probe: FrameProbe, folder: Path, n: int = 60
) -> int:
    """Films (MP4) and examples.json, selected by `RULE`; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.mp4"):
        old.unlink()
    rows = []
    for cell in ("what-E-wrong/clear", "what-C-wrong/clear", "when-E-wrong/clear", "order-E-wrong/clear"):
        items, bare = questions("demo", cell, n), questions("demo", f"{cell.split('-')[0]}-none/clear", n)
        seen = features_of(model, [q.film for q in items])
        truth = torch.tensor([q.truth == YES for q in items])
        able = (margins(model, packer, bare, seen) > 0) == truth
        able &= (probe_margins(model, probe, bare, seen) > 0) == truth
        misled = (margins(model, packer, items, seen) > 0) != truth
        found = torch.nonzero(misled & able).flatten().tolist()
        there = [i for i in found if items[i].truth == YES][:1]
        for number in sorted([*there, *[i for i in found if i not in there][: 2 - len(there)]]):
            q, name = items[number], f"{cell.split('/')[0]}-{number:03d}.mp4"
            write_film(q.film, folder / name)
            rows.append({
                "id": q.id, "video": name, "text": q.text, "hint": q.hint, "question": q.question, "label": q.truth,
                "greedy": NO if q.truth == YES else YES, "cell": q.cell, "object": q.objects[0],
                "objects": {a.name: [a.start / RATE, a.stop / RATE] for a in q.film.appearances},
                "evidence": [t / RATE for t in q.frames],
            })  # fmt: skip
    (folder / "examples.json").write_text(json.dumps({"rule": RULE, "examples": rows}, indent=1) + "\n")
    return len(rows)
