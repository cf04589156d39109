"""Writes what was trained into the package: the projector and the low-rank changes, and how pictures are asked about."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from limelight.models.checkpoints.smol_vision import KIND
from recipes.real_vision.model import changes
from recipes.real_vision.scenes import GRID, SIDE
from recipes.real_vision.text import TEMPLATE
from recipes.real_vision.train import Training

PLACE = Path(__file__).resolve().parents[2] / "src" / "limelight" / "demo" / "smol_vision"


def ship(training: Training, place: Path = PLACE) -> Path:
    """``model.safetensors`` (float16), ``config.json`` and ``chat_template.jinja``."""
    place.mkdir(parents=True, exist_ok=True)
    tensors = {f"projector.{n}": t for n, t in training.projector.state_dict().items()}
    tensors |= {f"changes.{n}": t for n, t in changes(training.attached).items()}
    halves = {n: t.detach().cpu().to(torch.float16).contiguous() for n, t in tensors.items()}
    save_file(halves, place / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": KIND,
        "language_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "vision_tower": "EfficientNet-Lite2 (ImageNet)",
        "image_size": SIDE,
        "image_tokens": GRID * GRID,
        "steps": training.step,
    }
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (place / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return place
