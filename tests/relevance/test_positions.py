"""PA-LRP: rotary positions get half of what passes their rotation, nothing is lost, and other positions are refused."""

from __future__ import annotations

import pytest
import torch

from limelight.decoding.generate import generate
from limelight.decoding.methods.lime_cached import lime_cached
from limelight.decoding.methods.meter import meter
from limelight.decoding.methods.relevance_contrastive import relevance_contrastive
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute, attribute_generated, following_rules
from limelight.relevance.composites import ATTN_LRP, PA_LRP
from limelight.relevance.forward.static import StaticStep
from limelight.relevance.forward.stream import DualStream
from limelight.relevance.positions import rotations_of
from tests.relevance.forward.helpers import after, close, stream
from tests.tiny import built, fresh, llava, llava_inputs, snapshot
from tests.wide import prompt, wide
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
    found = rotations_of(adapter, adapter.capture(llava_inputs(model)))
    assert set(found) == {0, 1}
    assert all(bool(mask.all()) for pair in found.values() for mask in pair)


def test_layers_without_positions_and_parts_of_heads() -> None:
    """Cohere's full layers do not rotate; GLM turns half of each head."""
    for name in ("cohere2_vision", "glm4v"):
        adapter = built(name, torch.float32)
        _, call, _ = prompt(name, adapter)
        sizes = {layer: int(q.sum()) for layer, (q, _) in rotations_of(adapter, call).items()}
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


@pytest.mark.parametrize(
    "name", ["llava", "qwen2_5_vl", "qwen2_audio", "glm4v", "gemma3", "mistral3", "cohere2_vision"]
)
def test_forward_mode_equals_the_backward_route(name: str) -> None:
    """Phi of the media and of the text, behind the prompt and token by token: positions of both count."""
    adapter = built(name, torch.float64)
    inputs, call, media_mask = prompt(name, adapter)
    answer = [61, 44, 9]
    dual = stream(adapter, call, media_mask, PA_LRP)
    with torch.no_grad():
        outputs = [dual.heads(dual.prefill())]
        for token in answer[:-1]:
            dual.append(torch.tensor([token]))
            outputs.append(dual.heads(dual.current()))
    media = torch.nn.functional.pad(media_mask[0], (0, len(answer) - 1))
    for n, ((_, phi), relevance) in enumerate(
        zip(outputs, attribute_generated(adapter, inputs, answer, composite=PA_LRP), strict=True)
    ):
        scores = relevance.scores.double()  # they were rounded to float32
        want = torch.stack([scores[media].sum(), scores[~media].sum()])
        torch.testing.assert_close(phi[:, 0, answer[n]].double(), want, atol=1e-6, rtol=1e-6)
    plain = stream(adapter, call, media_mask, ATTN_LRP)
    with torch.no_grad():
        same = torch.allclose(plain.heads(plain.prefill())[1], outputs[0][1], atol=1e-3)
    assert same is (name == "cohere2_vision")  # its only rotating layer is the first


def test_forward_mode_in_a_batch_and_with_fixed_shapes() -> None:
    adapter = wide("llava")
    _, call, media_mask = prompt("llava", adapter, None)
    tokens = [[9, 12], [55, 60], [33, 2], [20, 71]]
    logits, phi = after(stream(adapter, call, media_mask, PA_LRP), tokens)
    fixed = stream(adapter, call, media_mask, PA_LRP)
    fixed.static = StaticStep(fixed, graphs=False)
    fixed.static.after = 1
    close(after(fixed, tokens)[1], phi)
    assert fixed.static.window
    for row in (0, 1):
        _, call, media_mask = prompt("llava", adapter, row)
        alone = after(stream(adapter, call, media_mask, PA_LRP), [[pair[row]] for pair in tokens])
        close(logits[row], alone[0][0])
        close(phi[:, row], alone[1][:, 0])


def test_learned_positions_are_refused() -> None:
    for name in ("blip2", "mllama"):  # learned; read by cross-attention
        adapter = fresh(name)
        with pytest.raises(UnsupportedError, match=r"learned position|cross-attention"):
            attribute(adapter, ZOO[name].inputs(adapter.model), 3, composite=PA_LRP)
        with pytest.raises(UnsupportedError, match=r"learned position|cross-attention"):
            DualStream(adapter, adapter.capture(ZOO[name].inputs(adapter.model)), [], PA_LRP)


def test_the_meter_and_the_strategies_take_it() -> None:
    adapter = built("llava", torch.float32)
    inputs, _, _ = prompt("llava", adapter)
    for strategy in (
        meter(composite="pa-lrp"),
        relevance_contrastive(composite="pa-lrp"),
        lime_cached(composite="pa-lrp"),
    ):
        found = generate(adapter, messages=inputs, strategy=strategy, max_new_tokens=2)
        assert found.steps[0].grounding is not None
