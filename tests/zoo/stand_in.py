"""Families whose tower comes from the timm package: a patch embedding stands in for it, the rest is transformers'."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers as hf
from torch import Tensor, nn

from .base import Model, Tensors, Tiny, family, seeded
from .parts import IMAGE, LEAD, TAIL, VIDEO, pixels, text


class Patches(nn.Module):
    """Stands in for a tower: 16 channels on a grid of 2 x 2, flat if asked."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.proj = nn.Conv2d(3, 16, kernel_size=8, stride=8)

    def forward(self, pixel_values: Tensor, **kwargs: object) -> SimpleNamespace:
        grid = torch.tanh(self.proj(pixel_values))  # (B, 16, 2, 2)
        return SimpleNamespace(
            last_hidden_state=grid.flatten(2).mT if self.flat else grid, hidden_states=None, attentions=None
        )


@contextmanager
def without_timm(family: str, config: Any, flat: bool = False) -> Iterator[None]:
    """Within, the modeling file of `family` builds a `Patches` where `config` asks for a tower of timm's."""
    modeling = import_module(f"transformers.models.{family}.modeling_{family}")
    build, tower = modeling.AutoModel.from_config, config.vision_config

    def part(config: object) -> nn.Module:
        return Patches(flat) if config is tower else build(config)

    with mock.patch.object(modeling, "AutoModel", SimpleNamespace(from_config=part)):
        yield


def perception_lm() -> Model:
    config = hf.PerceptionLMConfig(
        vision_config=dict(model_type="timm_wrapper", architecture="vit", model_args={"embed_dim": 16}),
        text_config=text("llama", num_key_value_heads=2), vision_use_cls_token=False, image_token_id=IMAGE,
        video_token_id=VIDEO,
    )  # fmt: skip
    with without_timm("perception_lm", config, flat=True):
        return hf.PerceptionLMForConditionalGeneration(config)


def fast_vlm() -> Model:
    config = hf.FastVlmConfig(
        vision_config=dict(model_type="timm_wrapper", architecture="fastvit", hidden_size=16),
        text_config=text("qwen2", num_key_value_heads=2), image_token_index=IMAGE,
    )  # fmt: skip
    with without_timm("fast_vlm", config):
        return hf.FastVlmForConditionalGeneration(config)


def tile(seed: int) -> Tensors:
    return {"pixel_values": seeded(seed, 1, 1, 3, 16, 16)}


PROMPT = (*LEAD, ("image", 4), *TAIL)
STAND_IN = "A patch embedding stands in for the tower, which timm would bring."
ROWS: list[Tiny] = [
    family(
        "perception_lm", perception_lm, PROMPT, {"image": IMAGE}, tile, traits="rmsnorm gated gqa",
        decoder="model.language_model", notes=STAND_IN,
    ),
    family(
        "fast_vlm", fast_vlm, PROMPT, {"image": IMAGE}, pixels, traits="rmsnorm gated gqa bias",
        decoder="model.language_model", notes=STAND_IN,
    ),
]  # fmt: skip
