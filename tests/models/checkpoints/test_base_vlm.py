"""What the small models of our own share: a subclass that brings no features says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from limelight.errors import HookError, PromptError, UnsupportedError
from limelight.models.checkpoints.base_vlm import MergedModel
from tests.tiny import built
from tests.zoo import ZOO
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
    with pytest.raises(HookError, match=r"does not define features\(\) for its media pixel_values") as caught:
        model.run(torch.tensor([[1, 5]]), {"pixel_values": torch.ones(1, 3)})
    assert "features" in caught.value.hint
    with pytest.raises(PromptError, match="pixel_values"):
        model.run(torch.tensor([[1, 5]]), {})
    with torch.no_grad():
        words = model.run(torch.tensor([[1, 9]]), {"pixel_values": None}, logits_to_keep=1).logits
    assert words.shape == (1, 1, config.vocab_size)


@pytest.mark.parametrize("name", ["qwen_vl_chat", "salmonn"])
def test_states_are_handed_on_and_labels_are_refused(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    with torch.no_grad():
        out = adapter.model(**inputs, output_hidden_states=True, output_attentions=True)
    layers, length = len(adapter.decoder.layers), inputs["input_ids"].shape[1]
    assert len(out.hidden_states) == layers + 1 and out.hidden_states[0].shape[:2] == (1, length)
    assert [a.shape[-2:] for a in out.attentions] == [(length, length)] * layers
    assert torch.equal(adapter.logits(out.hidden_states[-1]), out.logits)
    with pytest.raises(UnsupportedError, match="computes no loss") as caught:
        adapter.model(**inputs, labels=inputs["input_ids"])
    assert caught.value.hint
