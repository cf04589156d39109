"""What must hold for every family: one tiny random model each, real transformers classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import limelight
from limelight.errors import HookError, LimelightError, ModelError, UnknownKindError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import NAME, AttentionHook, attention_hooks
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, Composite
from tests.slow_twins.balance import sheet
from tests.tiny import built, fresh, snapshot
from tests.zoo import FOUNDATION, ROWS, ZOO

# Families beyond the foundation that relevance does not cover yet, and what they must say instead of being wrong.
RAISES: dict[str, tuple[str, str]] = {
    "qwen4_exp": ("UnknownKindError", "hyper_connection"),
    "glm5_next": ("UnknownKindError", "b_proj"),
    "inkling": ("UnknownKindError", "r_proj"),
    "inkling2": ("UnknownKindError", "r_proj"),
    "minimax_m3_vl": ("UnknownKindError", "mlp"),
    "idefics": ("NotMultimodalError", "names no image"),
}
# generate() of these hands on to an inner language model, which knows no placeholder: custom_generate(parent_model=) tells.
HANDED_ON = ("blip2", "instructblip", "instructblipvideo", "kosmos2")

# Their media stand beside the prompt and are read by cross-attention.
BESIDE = ("mllama",)

WORKING = (*FOUNDATION, *(n for n in ZOO if n not in FOUNDATION and n not in RAISES))
families = pytest.mark.parametrize("name", WORKING)
foundation = pytest.mark.parametrize("name", FOUNDATION)


def given(name: str, adapter: Adapter, row: int = 0) -> dict[str, Tensor]:
    return ZOO[name].inputs(adapter.model, row=row)


WITHOUT_KEYS = ("linear_attention", "conv", "moe", "mlp")  # kinds of layers, as configs name them


class Recorder(AttentionHook):
    """Says which method ran in which layer, and the shapes it saw."""

    def __init__(self) -> None:
        self.calls: dict[str, list[int]] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.calls.setdefault("qkv", []).append(layer)
        self.shapes[layer] = (q.shape[1], k.shape[1], v.shape[-1])
        return q, k, v

    def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
        self.calls.setdefault("raw_scores", []).append(layer)
        return scores

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        self.calls.setdefault("scores", []).append(layer)
        return scores

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        self.calls.setdefault("out", []).append(layer)
        return out


@families
@torch.no_grad()
def test_hooks_bind_on_every_layer_that_has_keys_and_values(name: str) -> None:
    adapter = built(name)
    recorder = Recorder()
    types = getattr(adapter.decoder.config, "layer_types", None) or ["full_attention"] * len(adapter.decoder.layers)
    layers = [n for n, kind in enumerate(types) if kind not in WITHOUT_KEYS]
    assert layers
    with attention_hooks(recorder) as seen:
        adapter.hidden(adapter.capture(given(name, adapter)))
    assert sorted(seen) == layers == sorted(adapter.attention_layers)
    assert recorder.calls == dict.fromkeys(("qkv", "raw_scores", "scores", "out"), layers)
    traits = adapter.traits
    assert recorder.shapes == traits.each
    assert recorder.shapes[layers[0]] == (traits.heads, traits.kv_heads, traits.head_dim)
    assert all(traits.group(n) == heads // kv for n, (heads, kv, _) in recorder.shapes.items())
    assert traits.layers == len(layers)
    assert adapter.decoder is adapter.model.get_submodule(ZOO[name].decoder)


@families
@torch.no_grad()
def test_logits_are_the_models_own_eager_ones_bit_for_bit(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    want = adapter.model(**inputs).logits
    call = adapter.capture(inputs)
    got = adapter.logits(adapter.hidden(call))[:, call.front :]
    assert torch.equal(got, want)


@families
@torch.no_grad()
def test_growing_a_captured_prompt_equals_capturing_the_longer_one(name: str) -> None:
    """Last position only: a prefix-LM lets the prompt, but not what is generated, see ahead."""
    adapter = built(name)
    inputs = given(name, adapter)
    call = adapter.capture(inputs)
    tokens = [51, 52]
    for token in tokens:
        call = call.appended(adapter.embed(torch.tensor([[token]])))
    got = adapter.logits(adapter.hidden(call)[:, -1:])[:, 0]
    kwargs: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    forced = {"prefix_allowed_tokens_fn": _forcing(inputs["input_ids"].shape[1], tokens)}
    output = adapter.model.generate(**inputs, **kwargs, **forced, return_dict_in_generate=True)
    torch.testing.assert_close(got, output.logits[2].float(), atol=2e-5, rtol=2e-5)


def _forcing(length: int, tokens: list[int]) -> Any:
    def allowed(_: int, ids: Tensor) -> list[int]:
        step = len(ids) - length
        return [tokens[step]] if step < len(tokens) else [3, 4, 9]

    return allowed


@families
def test_greedy_and_one_step_lime_choose_the_tokens_of_generate(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    want = adapter.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    for strategy in (limelight.greedy(), limelight.lime(steps=1)):
        got = adapter.model.generate(
            **inputs,
            custom_generate=limelight.custom_generate(strategy, parent_model=adapter),
            max_new_tokens=4,
            do_sample=False,
        )
        assert torch.equal(got, want)


@families
def test_spans_partition_the_prompt_and_hold_the_placeholders(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    if name in BESIDE:
        pytest.skip("the media are beside the prompt: tests/models/test_beside.py")
    spans = adapter.spans(inputs)
    assert spans[0].start == 0
    assert [s.stop for s in spans[:-1]] == [s.start for s in spans[1:]]
    assert spans[-1].stop == inputs["input_ids"].shape[1]
    media_mask = {i: s.modality for s in spans if s.modality != "text" for i in range(s.start, s.stop)}
    placed = {i: kind for a, b, kind in ZOO[name].spans for i in range(a, b)}
    breaks = set(media_mask) - set(placed)  # Pixtral's break and end tokens
    assert {i: media_mask[i] for i in placed} == placed
    assert all(i - 1 in placed for i in breaks)
    assert not breaks or adapter.family.name == "pixtral"
    assert adapter.modality_ids(inputs)[0].nonzero()[:, 0].tolist() == sorted(media_mask)


@families
@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_relevance_conserves(name: str, composite: Composite) -> None:
    """The logit is the relevance of the embeddings plus what biases, attention (AttnLRP's softmax) and eps take.

    In float64, up to what transformers' float32 norms and rotary angles lose inside a float64 model.
    """
    if "no_float64" in ZOO[name].marks:
        pytest.skip(ZOO[name].notes)
    adapter = built(name, torch.float64)
    got = sheet(adapter, given(name, adapter), composite)
    logit = got.pop("logit")
    assert sum(got.values()) == pytest.approx(logit, abs=3e-6 * (1 + abs(logit)))
    assert abs(got["eps"]) < 1e-7
    if composite is CP_LRP:
        assert got["attention"] == 0.0
    relevance = attribute(adapter, given(name, adapter), composite=composite)
    assert float(relevance.scores.sum()) == pytest.approx(got["relevance"], abs=1e-9)
    assert relevance.logit == pytest.approx(logit, abs=1e-12)


@families
def test_the_model_is_left_as_it_was(name: str) -> None:
    adapter = built(name)
    inputs = given(name, adapter)
    with torch.no_grad():
        want = adapter.model(**inputs).logits
    before = snapshot(adapter.model)
    for composite in (ATTN_LRP, CP_LRP, GRADIENT_INPUT):
        attribute(adapter, inputs, composite=composite)
        assert snapshot(adapter.model) == before
    with pytest.raises(ZeroDivisionError), attached(adapter, ATTN_LRP, Recorder()):
        adapter.hidden(adapter.capture(inputs))
        raise ZeroDivisionError
    assert snapshot(adapter.model) == before
    fn = limelight.custom_generate(limelight.lime(steps=2), parent_model=adapter)
    adapter.model.generate(**inputs, custom_generate=fn, max_new_tokens=2)
    assert snapshot(adapter.model) == before
    with torch.no_grad():
        assert torch.equal(adapter.model(**inputs).logits, want)


@families
def test_type_ids_that_the_caller_left_out_are_made_up_for(name: str) -> None:
    """Positions and masks depend on them; a missing one would be silently wrong."""
    adapter = built(name)
    inputs = given(name, adapter)
    bare = {k: v for k, v in inputs.items() if not k.endswith("type_ids") or k.startswith("moe")}
    if len(bare) == len(inputs):
        pytest.skip("takes no type ids")
    assert torch.equal(attribute(adapter, bare).scores, attribute(adapter, inputs).scores)


@foundation
def test_only_the_text_stack_is_switched(name: str) -> None:
    adapter = Adapter(ZOO[name].build())
    before = snapshot(adapter.model)
    inside = {id(m) for m in adapter.decoder.modules()}
    with adapter.routed():
        for module in adapter.model.modules():
            config = getattr(module, "config", None)
            own = any(getattr(m, "config", None) is config for m in adapter.decoder.modules())
            if config is not None and module is not adapter.model:
                assert (config._attn_implementation == NAME) == own or id(module) in inside
        towers = [m for n, m in adapter.model.named_modules() if "tower" in n or n.endswith(("visual", "vision_model"))]
        assert towers
        assert all(m.config._attn_implementation != NAME for m in towers if hasattr(m, "config"))
    assert snapshot(adapter.model) == before


class Odd(nn.Module):
    """Normalises by the largest entry: no norm that a rule is known for."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.abs().amax(-1, keepdim=True)


class OddMLP(nn.Module):
    """Gate and up are added, not multiplied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, 24), nn.Linear(width, 24)
        self.down_proj, self.act_fn = nn.Linear(24, width), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


@foundation
@pytest.mark.parametrize("part", ["norm", "mlp", "attention"])
def test_an_unknown_kind_raises(name: str, part: str) -> None:
    adapter = fresh(name)
    layer = adapter.decoder.layers[0]
    attribute(adapter, given(name, adapter))  # the survey of the sound model must not be kept
    if part == "norm":
        layer.input_layernorm = Odd(layer.input_layernorm.weight)
    elif part == "mlp":
        layer.mlp = OddMLP(adapter.traits.hidden)
    else:
        own = layer.self_attn.o_proj

        def elsewhere(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            return own(hidden_states.mean(-1, keepdim=True).expand(*hidden_states.shape[:2], own.in_features)), None

        layer.self_attn.forward = elsewhere
    before = snapshot(adapter.model)
    for call in (lambda: attribute(adapter, given(name, adapter)), lambda: _lime(adapter, given(name, adapter))):
        with pytest.raises(HookError if part == "attention" else UnknownKindError) as caught:
            call()
        assert caught.value.hint
        assert snapshot(adapter.model) == before


def _lime(adapter: Adapter, inputs: dict[str, Tensor], whole: bool = True, **settings: Any) -> Any:
    return adapter.model.generate(
        **inputs,
        custom_generate=limelight.custom_generate(
            limelight.lime(**{"steps": 2, "lr": 1e-3, **settings}), parent_model=adapter if whole else None
        ),
        max_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


@families
def test_rows_of_a_left_padded_batch_equal_their_own_runs(name: str) -> None:
    """Relevance and greedy tokens in float32 (tolerance 1e-4 of the largest value); LIME in float64, since Adam turns
    float32 noise on a small gradient into a step of full size (1e-6; the norms still compute in float32)."""
    row_of = ZOO[name]
    if row_of.batch is None:
        pytest.skip(row_of.no_batch)
    if name in BESIDE:
        pytest.skip("padding stands behind the states: tests/models/test_beside.py")
    adapter = built(name)
    wide = built(name, torch.float64) if "no_float64" not in row_of.marks else adapter
    slack = 1e-6 if wide is not adapter else 1e-2
    batch = row_of.batch(adapter.model)
    call = adapter.capture(batch)
    together = _lime(wide, row_of.batch(wide.model), steps=3)
    for row in (0, 1):
        alone = given(name, adapter, row)
        pad = call.length - alone["input_ids"].shape[1]
        single = attribute(adapter, alone)
        inside = attribute(adapter, batch, single.target, row=row)
        scale = float(single.scores.abs().max())
        assert float(inside.scores[:pad].abs().sum()) == 0.0
        torch.testing.assert_close(inside.scores[pad:], single.scores, atol=1e-4 * scale, rtol=0)
        assert [(s.start + pad, s.stop + pad, s.modality, s.grid) for s in single.spans if s.modality != "text"] == [
            (s.start, s.stop, s.modality, s.grid) for s in inside.spans if s.modality != "text"
        ]
        own = _lime(wide, given(name, wide, row), steps=3)
        assert together.sequences[row, call.length :].tolist() == own.sequences[0, call.length - pad :].tolist()
        for left, right in zip(together.logits, own.logits, strict=True):
            torch.testing.assert_close(left[row], right[0], atol=slack * float(right.abs().max()), rtol=0)
        greedy = adapter.model.generate(
            **batch,
            custom_generate=limelight.custom_generate(limelight.greedy(), parent_model=adapter),
            max_new_tokens=3,
            do_sample=False,
        )
        plain = adapter.model.generate(**alone, max_new_tokens=3, do_sample=False)
        assert greedy[row, call.length :].tolist() == plain[0, call.length - pad :].tolist()


@families
def test_a_row_taken_out_of_a_captured_batch(name: str) -> None:
    row_of = ZOO[name]
    if row_of.batch is None:
        pytest.skip(row_of.no_batch)
    adapter = built(name)
    call = adapter.capture(row_of.batch(adapter.model))
    with torch.no_grad():
        whole = adapter.hidden(call)
        for row in (0, 1):
            single = call.row(row)
            assert single.embeds.shape[0] == single.mask.shape[0] == 1
            torch.testing.assert_close(adapter.hidden(single)[0, -1], whole[row, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(RAISES))
def test_unsupported_models_are_refused(name: str) -> None:
    kind, reason = RAISES[name]
    model = ZOO[name].build()
    with torch.no_grad():
        model(**ZOO[name].inputs(model))  # transformers' own hooks (output recording) come at the first forward
    before = snapshot(model)
    with pytest.raises(LimelightError) as caught:
        attribute(model, ZOO[name].inputs(model))
    assert type(caught.value).__name__ == kind
    assert reason in str(caught.value).lower()
    assert caught.value.hint
    assert snapshot(model) == before


@pytest.mark.parametrize("name", HANDED_ON)
def test_an_inner_language_model_called_directly_is_refused(name: str) -> None:
    adapter = built(name)
    with pytest.raises(LimelightError) as caught:
        _lime(adapter, given(name, adapter), whole=False)
    assert "parent_model" in caught.value.hint
    with pytest.raises(ModelError, match="not part of"):
        adapter.model.generate(
            **given(name, adapter),
            custom_generate=limelight.custom_generate(limelight.greedy(), parent_model=built("llava")),
            max_new_tokens=1,
        )


def test_every_row_of_the_zoo_is_accounted_for() -> None:
    assert set(WORKING) | set(RAISES) == ROWS.keys()
    assert not set(FOUNDATION) & set(RAISES)
    assert copy.copy(RAISES).keys() <= ROWS.keys()
