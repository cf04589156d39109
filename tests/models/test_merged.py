"""What the small models of our own share: a subclass that brings no features says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from limelight.errors import HookError, PromptError
from limelight.models.merged import MergedModel
from tests.zoo.parts import text


class Bare(MergedModel):
    config_class = LlamaConfig
    media = ("pixel_values",)
    placeholder = "pad_token_id"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.language_model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def test_a_model_without_features() -> None:
    config = LlamaConfig(**{k: v for k, v in text("llama", pad_token_id=5).items() if k != "model_type"})
    model = Bare(config).eval()
    with pytest.raises(HookError, match=r"Bare has media pixel_values and no features\(\)") as caught:
        model.run(torch.tensor([[1, 5]]), {"pixel_values": torch.ones(1, 3)})
    assert "features" in caught.value.hint
    with pytest.raises(PromptError, match="pixel_values"):
        model.run(torch.tensor([[1, 5]]), {})
    with torch.no_grad():
        words = model.run(torch.tensor([[1, 9]]), {"pixel_values": None}, logits_to_keep=1).logits
    assert words.shape == (1, 1, config.vocab_size)
