"""Compose the published models, and find their parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limelight.models.checkpoints.smol_vision import IMAGE_TOKEN, LANGUAGE, TOWER, SmolVision, compose
from limelight.models.checkpoints.weights_on_disk import weights_folder
from recipes.demo_vision.text import Packer
from recipes.real_vision.nouns import NOUNS
from recipes.real_vision.scenes import GRID
from recipes.real_vision.text import AROUND, BETWEEN

GROUND = "\n"  # the word that a position without a thing is like


def published() -> tuple[SmolVision, Any]:
    """The untrained composition of the fetched weights, and its tokenizer."""
    return compose(weights_folder(LANGUAGE), weights_folder(TOWER))


def packer(tokenizer: Any) -> Packer:
    return Packer(tokenizer, IMAGE_TOKEN, GRID * GRID, AROUND, BETWEEN, asked=0.0)


def words(model: SmolVision, tokenizer: Any) -> Tensor:
    """Input embeddings of the nouns (the mean where one has several tokens), and of the ground: ``[nouns + 1, D]``."""
    table = model.get_input_embeddings().weight.detach().float()
    spellings = [*(f" {n}" for n in sorted(NOUNS)), GROUND]
    return torch.stack([table[tokenizer.encode(s, add_special_tokens=False)].mean(0) for s in spellings])
