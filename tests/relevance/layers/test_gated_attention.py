"""Gated attention: the gate is a constant, told by widths, checked by what enters the output projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from limelight.decoding.methods.lime_cached import LimeCached
from limelight.errors import UnknownKindError
from limelight.models.adapter import Adapter
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP, CP_LRP
from tests.decoding.cached import check_against_twin
from tests.relevance.forward.helpers import backward_sums, close, prefilled
from tests.slow_twins.balance import sheet
from tests.tiny import PROMPT, cast, llava, llava_inputs, snapshot
from tests.wide import widen
from tests.zoo.base import enliven
from tests.zoo.parts import CLIP, IMAGE, text


class Gated(nn.Module):
    """Around an attention's output projection: what enters it is multiplied by a function of the gate."""

    def __init__(self, attention: Any, channels: int, act: Any = torch.sigmoid) -> None:
        super().__init__()
        hidden = attention.q_proj.in_features
        attention.gate_proj = nn.Linear(hidden, channels, dtype=attention.q_proj.weight.dtype)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in attention.gate_proj.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        inner = attention.o_proj.forward
        gates: list[Tensor] = []
        attention.register_forward_pre_hook(
            lambda m, args, kwargs: gates.append(m.gate_proj(kwargs["hidden_states"])), with_kwargs=True
        )

        def project(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            gate = act(gates.pop())
            heads = args[0].unflatten(-1, (4, -1)) * gate.unflatten(-1, (4, -1))
            return (heads.flatten(-2),)

        attention.o_proj.register_forward_pre_hook(project)
        del inner


def with_gates(channels: int, act: Any = torch.sigmoid) -> Adapter:
    model = llava()
    for layer in model.get_decoder().layers:
        Gated(layer.self_attn, channels, act)
    return Adapter(model)


def doubled(dtype: torch.dtype = torch.float64) -> Adapter:
    """Qwen3.5's attention in every layer, behind a LLaVA: q_proj makes queries and gates, head by head."""
    words = text("qwen3_5_text", num_key_value_heads=2, head_dim=16, layer_types=["full_attention"] * 2)
    words["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 2],
    }
    config = hf.LlavaConfig(vision_config=dict(CLIP), text_config=words, image_token_index=IMAGE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cast(enliven(hf.LlavaForConditionalGeneration(config)).eval(), dtype)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    with torch.no_grad():
        model.lm_head.weight[IMAGE] *= 0.01
    return widen(Adapter(model))


KINDS = {"doubled": doubled, "a channel": lambda: with_gates(32), "a head": lambda: with_gates(4)}
every = pytest.mark.parametrize("kind", KINDS)


@every
@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_conserved_constant_and_left_as_it_was(kind: str, composite: Any) -> None:
    adapter = KINDS[kind]()
    inputs = llava_inputs(adapter.model)
    assert sum(s.kind == "gated_attention" for s in classify_modules(adapter.decoder)) == 2
    adapter.model(**inputs)
    before = snapshot(adapter.model)
    got = sheet(adapter, inputs, composite)
    logit = got.pop("logit")
    assert sum(got.values()) == pytest.approx(logit, abs=1e-6 * (1 + abs(logit)))
    assert float(attribute(adapter, inputs, composite=composite).scores.sum()) == pytest.approx(got["relevance"])
    assert snapshot(adapter.model) == before


@every
@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_forward_mode_is_the_backward_route(kind: str, composite: Any) -> None:
    adapter = KINDS[kind]()
    inputs = llava_inputs(adapter.model)
    call = adapter.capture(inputs).cloned()
    media_mask = adapter.modality_ids(inputs) > 0
    logits, phi = prefilled(adapter, call, media_mask, composite)
    want_logits, want = backward_sums(adapter, call, media_mask, [3, 17, 64], composite)
    close(logits[0], want_logits, 1e-9)
    close(phi[:, 0, [3, 17, 64]], want, 1e-9)


def test_the_slow_way_to_hold_a_gate_constant() -> None:
    """Relevance equals that of a model whose gates are the recorded numbers instead of linears."""
    adapter = doubled()
    inputs = llava_inputs(adapter.model)
    want = attribute(adapter, inputs, 9)
    kept: list[Tensor] = []
    for layer in adapter.decoder.layers:
        attention = layer.self_attn
        attention.q_proj.register_forward_hook(
            lambda m, a, out: kept.append(out.detach().unflatten(-1, (m.out_features // 32, 2, 16))[..., 1, :])
        )
    with torch.no_grad():
        adapter.hidden(adapter.capture(inputs))
    numbers = iter(kept[-2:])
    for layer in adapter.decoder.layers:
        attention, fixed = layer.self_attn, next(numbers)
        attention.q_proj._forward_hooks.clear()
        plain = nn.Linear.forward

        def forward(x: Tensor, m: Any = attention.q_proj, fixed: Tensor = fixed, plain: Any = plain) -> Tensor:
            out = plain(m, x).unflatten(-1, (m.out_features // 32, 2, 16))
            return torch.stack([out[..., 0, :], fixed], dim=-2).flatten(-3)

        attention.q_proj.forward = forward
    with torch.enable_grad(), attached(adapter, ATTN_LRP):
        call = adapter.capture(inputs)
        embeds = call.embeds.clone().requires_grad_(True)
        logit = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0, 9]
        (gradient,) = torch.autograd.grad(logit, embeds)
    close((gradient * embeds).sum(-1)[0].detach(), want.scores, 1e-9)


@pytest.mark.parametrize("gradient", ["surrogate"])
def test_cached_lime_on_gated_attention(gradient: str) -> None:
    adapter = doubled()
    strategy = LimeCached(updates=2, lr=5e-3, gradient=gradient, kl_weight=0.5)
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 2, route="backward")


def test_another_use_of_such_a_linear_raises() -> None:
    adapter = with_gates(32, torch.tanh)
    inputs = llava_inputs(adapter.model)
    adapter.model(**inputs)
    before = snapshot(adapter.model)
    for _ in range(2):  # a failed check is not remembered as passed
        with pytest.raises(UnknownKindError, match="gate") as caught:
            attribute(adapter, inputs)
        assert caught.value.hint
        call = adapter.capture(inputs).cloned()
        with pytest.raises(UnknownKindError, match="gate"):
            prefilled(adapter, call, adapter.modality_ids(inputs) > 0)
    assert snapshot(adapter.model) == before
    assert len(PROMPT) == call.length


def test_what_looks_like_a_gate_and_is_not_used_raises() -> None:
    model = llava()
    model.get_decoder().layers[0].self_attn.gate_proj = nn.Linear(32, 32).double()
    with pytest.raises(UnknownKindError, match="is not used as one") as caught:
        attribute(model, llava_inputs(model))
    assert caught.value.hint
