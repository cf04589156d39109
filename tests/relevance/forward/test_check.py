"""What the tangents stand on: heads, the model left as it was, and the refusal of whatever no rule covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import HookError, NotFiniteError, SettingError, UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import attention
from limelight.relevance.attachment import matches_of
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT
from limelight.relevance.forward.stream import Channel, DualStream
from limelight.relevance.layers.gated_mlp import GatedSpec
from tests.relevance.forward.helpers import after, backward_sums, close, prefilled, stream
from tests.tiny import built, fresh, llava, llava_inputs, snapshot
from tests.wide import latent, prompt, wide, widen
from tests.zoo import ZOO


@pytest.mark.parametrize("name", ["llava_gqa", "paligemma2", "granite_speech"])
def test_phi_of_chosen_tokens_is_a_part_of_the_whole(name: str) -> None:
    """Plain head, soft-capped head, scaled head."""
    adapter = wide(name)
    _, call, media_mask = prompt(name, adapter)
    dual = stream(adapter, call, media_mask)
    with torch.no_grad():
        output = dual.prefill()
        tokens = torch.tensor([[5, 77, 5]])
        close(dual.phi_of(output, tokens), dual.heads(output)[1][:, :, [5, 77, 5]])


class Wrapped(nn.Module):
    """A head as an adapter leaves it: the linear inside, a bias and a low-rank part of its own."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        generator = torch.Generator().manual_seed(3)
        self.bias = nn.Parameter(torch.randn(inner.out_features, generator=generator, dtype=inner.weight.dtype))
        self.low = nn.Parameter(torch.randn(inner.in_features, 2, generator=generator, dtype=inner.weight.dtype) / 8)

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        low = x @ self.low
        return self.inner(x) + torch.cat([low, low.new_zeros(*low.shape[:-1], self.out_features - 2)], -1) + self.bias


def test_what_a_hook_adds_to_the_head_is_no_relevance() -> None:
    adapter = widen(fresh("llava_gqa", torch.float64))
    _, call, media_mask = prompt("llava_gqa", adapter)
    want, phi = prefilled(adapter, call, media_mask)
    handle = adapter.head.register_forward_hook(lambda _m, _a, out: out * 2 + 1)
    got, again = prefilled(adapter, call, media_mask)
    handle.remove()
    close(got, want * 2 + 1)
    close(again, phi * 2)


def test_an_adapted_head_and_its_bias() -> None:
    adapter = widen(fresh("llava_gqa", torch.float64))
    adapter.model.lm_head = adapter.head = Wrapped(adapter.head)  # type: ignore[arg-type]
    _, call, media_mask = prompt("llava_gqa", adapter)
    dual = stream(adapter, call, media_mask)
    with torch.no_grad():
        output = dual.prefill()
        logits, phi = dual.heads(output)
        close(dual.phi_of(output, torch.tensor([[0, 40]])), phi[:, :, [0, 40]])
    own, want = backward_sums(adapter, call, media_mask, [0, 40], ATTN_LRP)
    close(logits[0], own)
    close(phi[:, 0, [0, 40]], want)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "blip2"])
def test_the_model_is_bit_equal_afterwards(name: str) -> None:
    adapter = built(name)
    _, call, media_mask = prompt(name, adapter)
    before = snapshot(adapter.model)
    dual = stream(adapter, call, media_mask)
    after(dual, [[9]])
    dual.append(torch.tensor([8]))
    dual.current(graph="surrogate", write=False).hidden.sum().backward()
    dual.current(graph="true", write=False).hidden.sum().backward()
    for p in adapter.model.parameters():
        p.grad = None
    assert snapshot(adapter.model) == before


def test_the_model_is_bit_equal_after_an_exception() -> None:
    adapter = fresh("llava_gqa")
    _, call, media_mask = prompt("llava_gqa", adapter)
    dual = stream(adapter, call, media_mask)
    before = snapshot(adapter.model)

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    handle = adapter.decoder.layers[1].mlp.register_forward_hook(fail)
    for run in (dual.prefill, lambda: dual.current(graph="true")):
        with pytest.raises(RuntimeError, match="planted"):
            run()
    handle.remove()
    assert snapshot(adapter.model) == before
    assert (dual.mode.channels, dual.mode.graph, dual.mode.write) == (1, "none", True)
    assert torch.isfinite(dual.heads(dual.prefill())[1]).all()


class Shifted(nn.Module):
    """A decoder layer that does something of its own to its output."""

    def __init__(self, inner: nn.Module, change: Any) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.change(self.inner(x, *args, **kwargs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.01,
        lambda x: x * torch.sigmoid(x),
        lambda x: nn.functional.softplus(x),
        torch.relu,
        lambda x: x + 1e-4,
        lambda x: x.clamp(-0.5, 0.5),
    ],
    ids=["bias", "gate", "softplus", "relu", "small bias", "clamp"],
)
def test_what_no_rule_covers_is_refused(change: Any, dtype: torch.dtype) -> None:
    adapter = fresh("llava_gqa", dtype)
    adapter.decoder.layers[0] = Shifted(adapter.decoder.layers[0], change)
    adapter = Adapter(adapter.model)
    _, call, media_mask = prompt("llava_gqa", adapter)
    with pytest.raises(UnknownKindError, match="no rule covers") as caught:
        stream(adapter, call, media_mask)
    assert "exact mode" in caught.value.hint


def test_what_is_linear_needs_no_rule() -> None:
    adapter = fresh("llava_gqa", torch.float64)
    adapter.decoder.layers[0] = Shifted(adapter.decoder.layers[0], lambda x: x * 1.5 - x.flip(-1))
    adapter = widen(Adapter(adapter.model))
    _, call, media_mask = prompt("llava_gqa", adapter)
    _, phi = prefilled(adapter, call, media_mask)
    close(phi[:, 0, [7, 8]], backward_sums(adapter, call, media_mask, [7, 8], ATTN_LRP)[1])


def test_the_check_of_the_twins_runs_once_a_model_and_again_when_modules_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = fresh("llava_gqa")
    _, call, media_mask = prompt("llava_gqa", adapter)
    runs: list[int] = []
    adapter.decoder.register_forward_hook(lambda *_: runs.append(1))
    stream(adapter, call, media_mask)
    stream(adapter, call, media_mask)
    assert len(runs) == 2  # the decoder itself, and with its twins
    stream(adapter, call, media_mask, CP_LRP)
    assert len(runs) == 4
    adapter.decoder.layers[1] = Shifted(adapter.decoder.layers[1], lambda x: x + 1)
    with pytest.raises(UnknownKindError):
        stream(adapter, call, media_mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twins_that_compute_something_else_are_refused(dtype: torch.dtype) -> None:
    """A gate taken for the other factor, as if a probe had erred: linear on tangents, and wrong in every value."""
    adapter = fresh("llava_gqa", dtype)
    _, call, media_mask = prompt("llava_gqa", adapter)
    for number, site in enumerate(sites := matches_of(adapter)):
        if isinstance(site.spec, GatedSpec):
            sites[number] = replace(site, spec=replace(site.spec, gate=site.spec.up, up=site.spec.gate))
    with pytest.raises(UnknownKindError, match="does not match its own forward") as caught:
        stream(adapter, call, media_mask)
    assert "exact mode" in caught.value.hint


def test_an_input_used_later_is_checked_then() -> None:
    """A model that hears first and sees afterwards: its door for pictures was shut at the first prompt."""
    adapter = fresh("qwen3_omni_thinker")
    inputs, call, media_mask = prompt("qwen3_omni_thinker", adapter)
    kinds = adapter.modality_ids(inputs)
    seen = torch.nn.functional.max_pool1d((kinds == 1).float(), 3, 1, 1).bool()[0]  # with its two markers
    heard = {k: v[:, ~seen] if v.shape[:2] == kinds.shape else v for k, v in inputs.items() if "image" not in k}
    heard.pop("pixel_values")
    alone = adapter.capture(heard)
    assert alone.features is None and call.features is not None
    own = adapter.decoder._deepstack_process
    adapter.decoder._deepstack_process = lambda hidden, where, features: own(hidden, where, features.relu())
    stream(adapter, alone, adapter.modality_ids(heard) > 0)
    with pytest.raises(UnknownKindError, match="no rule covers"):
        stream(adapter, call, media_mask)


def test_attention_outside_the_interface_is_refused() -> None:
    adapter = fresh("llava_gqa")
    attention = adapter.decoder.layers[1].self_attn
    attention.forward = lambda hidden_states, **_: (attention.o_proj(attention.q_proj(hidden_states)), None)
    _, call, media_mask = prompt("llava_gqa", adapter)
    with pytest.raises(HookError, match="did not bind"):
        stream(adapter, call, media_mask).prefill()


@pytest.mark.parametrize("name", ["position_bias", "sinks", "indices", "block_indices", "something_new"])
def test_what_attention_would_leave_out_is_refused(name: str) -> None:
    """Arguments that change the result of a family's own attention."""
    module = nn.Module()
    q = torch.randn(1, 2, 3, 4)
    out, _ = attention(module, q, q, q, None, **{name: None}, position_ids=torch.arange(3), use_cache=True)
    assert out.shape == (1, 3, 2, 4)
    with pytest.raises(UnsupportedError, match=name) as caught:
        attention(module, q, q, q, None, **{name: torch.ones(3)})
    assert "greedy" in caught.value.hint


@pytest.mark.parametrize("name", ["inkling", "inkling2"])
def test_without_rules_such_families_are_refused_too(name: str) -> None:
    adapter = Adapter(ZOO[name].build())
    with pytest.raises(UnsupportedError, match="to its attention"):
        attribute(adapter, ZOO[name].inputs(adapter.model), composite=GRADIENT_INPUT)


def test_latent_attention_whose_values_are_narrower_than_its_keys() -> None:
    adapter = latent()
    _, call, media_mask = prompt("kimi_k25", adapter)
    for composite in (ATTN_LRP, CP_LRP):
        logits, phi = after(stream(adapter, call, media_mask, composite), [[9]])
        whole = call.appended(adapter.embed(torch.tensor([[9]])))
        own, want = backward_sums(adapter, whole, nn.functional.pad(media_mask, (0, 1)), [5, 60], composite)
        close(logits[0], own)
        close(phi[:, 0, [5, 60]], want)


def test_settings_that_cannot_be() -> None:
    adapter = Adapter(llava())
    call = adapter.capture(llava_inputs(adapter.model))
    with pytest.raises(SettingError, match="weights") as caught:
        DualStream(adapter, call, [Channel("short", torch.ones(1, 3), 0.0)])
    assert "prompt position" in caught.value.hint
    with pytest.raises(UnknownKindError, match="no forward mode"):
        DualStream(adapter, call, [], GRADIENT_INPUT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["logits", "relevance"])
def test_non_finite_values_are_reported(where: str, value: float) -> None:
    adapter = Adapter(llava())
    call = adapter.capture(llava_inputs(adapter.model))
    dual = stream(adapter, call, (adapter.modality_ids(llava_inputs(adapter.model)) > 0))
    output = dual.prefill()
    output.hidden[0 if where == "logits" else 1, 0, 0] = value
    with pytest.raises(NotFiniteError, match="NaN"):
        dual.heads(output)
