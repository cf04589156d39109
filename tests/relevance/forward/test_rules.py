"""Forward mode comes onto a model and off again; what has none is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from limelight.errors import HookError, UnknownKindError
from limelight.models.adapter import Adapter
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, RELEASED_AUDIO
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.forward.rules import JvpRules
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import noise
from tests.tiny import fresh, snapshot


@pytest.mark.parametrize("composite", [GRADIENT_INPUT, RELEASED_AUDIO], ids=lambda c: c.name)
def test_a_composite_without_forward_mode_is_refused(composite: Any) -> None:
    with pytest.raises(UnknownKindError, match="no forward mode") as caught:
        JvpRules(fresh("llava"), Mode(), DualCache(1), composite)
    assert "exact mode" in caught.value.hint


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_rules_come_and_go(composite: Any) -> None:
    adapter = fresh("qwen2_5_vl")
    before = snapshot(adapter.model)
    mode = Mode()
    rules = JvpRules(adapter, mode, DualCache(8), composite)
    embeds = noise(1, 1, 2, adapter.traits.hidden).float()
    with rules.attached():
        assert snapshot(adapter.model) != before
        with torch.no_grad():
            inside = adapter.decoder(inputs_embeds=embeds).last_hidden_state
    assert snapshot(adapter.model) == before
    with torch.no_grad():
        torch.testing.assert_close(inside, adapter.decoder(inputs_embeds=embeds).last_hidden_state, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="planted"), rules.attached():
        raise ValueError("planted")
    assert snapshot(adapter.model) == before
    with pytest.raises(HookError, match="did not bind"), rules.attached():
        pass
    assert snapshot(adapter.model) == before


def test_biases_outside_the_layers_have_rules_too() -> None:
    adapter: Adapter = fresh("blip2")
    rules = JvpRules(adapter, Mode(), DualCache(1))
    with rules.attached():
        changed = {n for n, m in adapter.decoder.named_modules() if "forward" in vars(m)}
        with torch.no_grad():  # else attention is missed
            adapter.decoder(inputs_embeds=torch.zeros(1, 2, adapter.traits.hidden))
    assert {"embed_positions", "final_layer_norm", "layers.0.fc1", "layers.0.activation_fn"} <= changed
