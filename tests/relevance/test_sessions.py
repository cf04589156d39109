"""What is put on a model is built once per answer, is off between tokens, and follows modules that are exchanged."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import limelight
from limelight.models.adapter import Adapter
from limelight.models.runtime import module_table, wrappers
from limelight.relevance import attachment
from limelight.relevance.forward.stream import DualStream, modality_channel
from limelight.relevance.kind import Replacement
from tests.tiny import llava, llava_inputs, snapshot

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {}, "meter": {}, "lime": {"steps": 3, "lr": 1e-2}, "lime-cached": {"lr": 1e-2}, "relevance-contrastive": {},
    "lime-cached paper": {"objective": "paper", "refresh": 2, "lr": 1e-2},
}  # fmt: skip
named = pytest.mark.parametrize("name", STRATEGIES)


def answer(adapter: Adapter, inputs: Any, name: str, tokens: int = 3, on_step: Any = None) -> Any:
    strategy = limelight.strategy(name.split()[0], **STRATEGIES[name])
    fn = limelight.custom_generate(strategy, details=True, parent_model=adapter, on_step=on_step)
    return adapter.model.generate(
        **inputs, custom_generate=fn, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Walks over the modules of a model, and forwards that are built to take the place of a module's own."""
    found: Counter[str] = Counter()
    walk, build = wrappers.modules_of, Replacement.__init__

    def walking(*roots: nn.Module) -> list[nn.Module]:
        found["walks"] += 1
        return walk(*roots)

    def building(self: Replacement, *args: Any) -> None:
        found["built"] += 1
        build(self, *args)

    for module in (wrappers, module_table):
        monkeypatch.setattr(module, "modules_of", walking)
    monkeypatch.setattr(Replacement, "__init__", building)
    return found


@named
def test_no_token_walks_over_the_modules_or_builds_a_rule(name: str, counts: Counter[str]) -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    answer(adapter, inputs, name)  # kinds are probed, and what is checked once per model is checked
    seen = []
    for tokens in (2, 6):
        counts.clear()
        answer(adapter, inputs, name, tokens)
        seen.append(dict(counts))
    refreshed = 2 if "paper" in name else 0  # prompts that the answer's tokens join
    assert seen[1]["walks"] == seen[0]["walks"] <= 2
    assert 0 < seen[0]["built"] <= 60
    assert seen[1]["built"] <= seen[0]["built"] * (1 + refreshed)


@named
def test_between_tokens_the_model_is_as_it_was(name: str) -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    with torch.no_grad():
        plain = adapter.model(**inputs).logits
    before, seen = snapshot(adapter.model), []

    def look(row: int, step: Any) -> None:
        seen.append(snapshot(adapter.model) == before)
        with torch.no_grad():
            seen.append(torch.equal(adapter.model(**inputs).logits, plain))

    answer(adapter, inputs, name, on_step=look)
    assert seen == [True] * 6
    assert snapshot(adapter.model) == before


@named
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_everything_is_off_after_an_exception_within_a_later_token(name: str, error: type[BaseException]) -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    want = answer(adapter, inputs, name).sequences
    before, tokens = snapshot(adapter.model), []

    def fail(*_: Any) -> None:
        if tokens:
            raise error

    handle = adapter.decoder.layers[1].mlp.register_forward_hook(fail)
    try:
        with pytest.raises(error):
            answer(adapter, inputs, name, on_step=lambda row, step: tokens.append(step))
    finally:
        handle.remove()
    assert len(tokens) == 1
    assert snapshot(adapter.model) == before
    assert not attachment._HELD
    assert torch.equal(answer(adapter, inputs, name).sequences, want)


def exchange(decoder: Any) -> None:
    """Norms and activations by equals: a rule that stayed on the old ones would be missing on the new."""
    for layer in decoder.layers:
        layer.input_layernorm = copy.deepcopy(layer.input_layernorm)
        layer.mlp.act_fn = copy.deepcopy(layer.mlp.act_fn)


def other_weights(decoder: Any) -> None:
    for layer in decoder.layers:
        layer.input_layernorm.weight = nn.Parameter(layer.input_layernorm.weight.detach() * 1.5)


def own_forward(decoder: Any) -> None:
    for layer in decoder.layers:
        norm = layer.input_layernorm
        norm.forward = lambda x, norm=norm: type(norm).forward(norm, x) * 1.0


@named
@pytest.mark.parametrize("change", [exchange, own_forward])
def test_modules_exchanged_between_tokens_get_their_rules(name: str, change: Callable[[Any], None]) -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    want = answer(adapter, inputs, name)
    done: list[int] = []

    def between(row: int, step: Any) -> None:
        if not done:
            done.append(1)
            change(adapter.decoder)

    got = answer(adapter, inputs, name, on_step=between)
    assert done
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.cat(got.logits), torch.cat(want.logits), atol=1e-5, rtol=1e-5)
    for a, b in zip(got.steps[0], want.steps[0], strict=True):
        assert dict(a.contributions) == pytest.approx(dict(b.contributions), abs=1e-5)
        assert dict(a.shares) == pytest.approx(dict(b.shares), abs=1e-5)
    assert all(("forward" in vars(x.input_layernorm)) == (change is own_forward) for x in adapter.decoder.layers)


def test_weights_exchanged_between_two_calls_of_a_block() -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    with adapter.listed():
        first = limelight.attribute(adapter, inputs, 9).scores
        other_weights(adapter.decoder)
        second = limelight.attribute(adapter, inputs, 9).scores
    assert float((first - second).abs().max()) > 1e-3
    assert torch.equal(second, limelight.attribute(Adapter(adapter.model), inputs, 9).scores)


def test_a_forward_of_the_caller_is_run_and_stays() -> None:
    adapter = Adapter(llava(torch.float32))
    inputs = llava_inputs(adapter.model)
    call = adapter.capture(inputs)
    stream = DualStream(adapter, call, [modality_channel(adapter.modality_ids(inputs) > 0, call.mask)])
    stream.prefill()
    norm, calls = adapter.decoder.layers[0].input_layernorm, []

    def own(x: Any) -> Any:
        calls.append(tuple(x.shape))
        return type(norm).forward(norm, x)

    norm.forward = own
    stream.append(torch.tensor([9]))
    stream.current(tangents=False)
    assert calls == [(1, 1, 32)]
    assert vars(norm)["forward"] is own


def test_a_stream_that_is_dropped_without_closing_leaves_nothing() -> None:
    model = llava(torch.float32)
    adapter = Adapter(model)
    inputs = llava_inputs(model)
    before = snapshot(model)
    call = adapter.capture(inputs)
    stream = DualStream(adapter, call, [modality_channel(adapter.modality_ids(inputs) > 0, call.mask)])
    stream.prefill()
    table = weakref.ref(stream.rules.table)
    assert snapshot(model) == before
    gone = weakref.ref(model), weakref.ref(stream)
    del stream
    assert gone[1]() is None, "caches of a stream go with it, without waiting for a collection"
    assert table() is None
    del model, adapter, before
    gc.collect()
    assert gone[0]() is None
