"""PA-LRP: rotary positions get half of what passes their rotation, nothing is lost, and other positions are refused."""

from __future__ import annotations

import pytest
import torch

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute, attribute_generated, following_rules
from limelight.relevance.composites import ATTN_LRP, PA_LRP
from limelight.relevance.forward.stream import DualStream
from limelight.relevance.positions import rotations_of
from tests.tiny import built, fresh, llava, llava_inputs, snapshot
from tests.wide import prompt
from tests.zoo import ZOO


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_at_a_rotation(seed: int) -> None:
    """With one layer a position's half comes back to its own word: AttnLRP's relevance. With more, halves stay behind where
    the words below would have passed them on."""
    model = llava(seed=seed, num_hidden_layers=1)
    adapter, inputs = Adapter(model), llava_inputs(model)
    for target in (None, 17, 100):
        got, want = (attribute(adapter, inputs, target, composite=c).scores for c in (PA_LRP, ATTN_LRP))
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    model = llava(seed=seed)
    got, want = (attribute(Adapter(model), llava_inputs(model), 17, composite=c).scores for c in (PA_LRP, ATTN_LRP))
    assert not torch.allclose(got, want, atol=1e-3)


def test_all_dimensions_of_a_llama_rotate() -> None:
    model = llava()
    adapter = Adapter(model)
    found = rotations_of(adapter, adapter.capture(llava_inputs(model))).layers
    assert set(found) == {0, 1}
    assert all(bool(mask.all()) for pair in found.values() for mask in pair)


def test_layers_without_positions_and_parts_of_heads() -> None:
    """Cohere's full layers do not rotate; GLM turns half of each head."""
    for name in ("cohere2_vision", "glm4v"):
        adapter = built(name, torch.float32)
        _, call, _ = prompt(name, adapter)
        sizes = {layer: int(q.sum()) for layer, (q, _) in rotations_of(adapter, call).layers.items()}
        if name == "glm4v":
            assert set(sizes.values()) == {adapter.traits.head_dim // 2}
        else:
            assert 0 in sizes.values()
            assert adapter.traits.head_dim in sizes.values()


def test_every_token_of_an_answer() -> None:
    model = llava(num_hidden_layers=1)
    adapter, inputs = Adapter(model), llava_inputs(model)
    before = snapshot(model)
    for got, want in zip(
        *(attribute_generated(adapter, inputs, [61, 44], composite=c) for c in (PA_LRP, ATTN_LRP)), strict=True
    ):
        assert float(got.scores.sum()) == pytest.approx(float(want.scores.sum()), abs=1e-10)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen2_audio"])
def test_on_families_with_rotary_positions(name: str) -> None:
    adapter = built(name, torch.float64)
    inputs, call, _ = prompt(name, adapter)
    got, want = (attribute(adapter, inputs, 17, composite=c).scores for c in (PA_LRP, ATTN_LRP))
    assert torch.isfinite(got).all()
    assert got.shape == want.shape
    assert not torch.allclose(got, want)


def test_a_batch_of_rows_has_positions_of_its_own() -> None:
    model = llava()
    adapter = Adapter(model)
    call = adapter.capture(llava_inputs(model))
    wide = call.reordered(torch.tensor([0, 0]))
    with following_rules(adapter, PA_LRP, wide) as leaves:
        logits = adapter.logits(adapter.hidden(leaves.call, leaves.embeds)[:, -1])
        both = leaves.relevance(logits[0, 17] + logits[1, 100])
    for row, target in enumerate((17, 100)):
        alone = attribute(adapter, llava_inputs(model), target, composite=PA_LRP).scores
        torch.testing.assert_close(both[row].detach(), alone, atol=1e-10, rtol=0)


def test_learned_positions_and_forward_mode_are_refused() -> None:
    for name in ("blip2", "mllama"):  # learned; read by cross-attention
        adapter = fresh(name)
        with pytest.raises(UnsupportedError, match=r"stand|cross-attention"):
            attribute(adapter, ZOO[name].inputs(adapter.model), 3, composite=PA_LRP)
    model = llava()
    adapter = Adapter(model)
    with pytest.raises(UnknownKindError, match="no forward mode"):
        DualStream(adapter, adapter.capture(llava_inputs(model)), [], PA_LRP)
