"""Rules come onto instances and off again, whoever else has put something there, and whatever happens inside."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.errors import HookError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.classify import layer_kinds
from limelight.relevance.composites import (
    ATTN_LRP,
    COMPOSITES,
    CP_LRP,
    GRADIENT_INPUT,
    PA_LRP,
    RELEASED_AUDIO,
    Composite,
)
from limelight.relevance.kind import replaced
from limelight.relevance.rules import divided
from tests.tiny import built, fresh, llava, llava_inputs, snapshot
from tests.zoo import ZOO

ALONE = [c for c in COMPOSITES.values() if not c.positional]  # put on a model without attribute()


def test_a_part_for_positions_is_added_up_by_attribute_alone() -> None:
    adapter = Adapter(llava())
    with pytest.raises(UnsupportedError, match="attribute"), attached(adapter, PA_LRP):
        pass


def test_the_tables() -> None:
    assert set(COMPOSITES) == {
        "attnlrp", "cp-lrp", "cp-lrp-linear", "reslrp", "pa-lrp", "gradient-input", "released-audio",
    }  # fmt: skip
    assert ATTN_LRP.attention == (4, 4, 2)
    assert CP_LRP.attention == (0, 0, 1)
    assert RELEASED_AUDIO.attention == GRADIENT_INPUT.attention == (1, 1, 1)
    assert set(ATTN_LRP.rules) == set(CP_LRP.rules) == {kind.name for kind in layer_kinds()}
    assert GRADIENT_INPUT.plain
    assert not RELEASED_AUDIO.plain


def test_divided() -> None:
    x = torch.ones(3, requires_grad=True)
    assert divided(x, 1) is x
    assert not divided(x, 0).requires_grad
    assert torch.autograd.grad(divided(x, 4).sum(), x)[0].tolist() == [0.25] * 3


@pytest.mark.parametrize("composite", ALONE, ids=lambda c: c.name)
def test_inside_the_block_the_model_is_changed_and_after_it_it_is_not(composite: Composite) -> None:
    adapter = fresh("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    attribute(adapter, inputs)
    before = snapshot(adapter.model)
    with attached(adapter, composite):
        assert snapshot(adapter.model) != before
        adapter.hidden(adapter.capture(inputs))
    assert snapshot(adapter.model) == before


def test_blocks_nest_and_unwind_in_order() -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    alone = attribute(adapter, inputs, composite=ATTN_LRP).scores
    before = snapshot(adapter.model)
    with attached(adapter, GRADIENT_INPUT):
        inside = attribute(adapter, inputs, composite=ATTN_LRP).scores
        adapter.hidden(adapter.capture(inputs))
    assert torch.equal(inside, alone)
    assert snapshot(adapter.model) == before


def test_a_forward_that_was_put_on_an_instance_is_kept_and_called() -> None:
    """accelerate puts its own forward on instances; the rule goes around it and hands it back."""
    adapter = fresh("llava")
    norm = adapter.decoder.norm
    own, calls = norm.forward, []

    def theirs(x: Tensor) -> Tensor:
        calls.append(1)
        return own(x)

    norm.forward = theirs
    attribute(adapter, ZOO["llava"].inputs(adapter.model))
    assert calls
    assert norm.__dict__["forward"] is theirs


def test_replaced_puts_back_exactly_what_was_there() -> None:
    module = torch.nn.Identity()
    undo = replaced(module, lambda x: x + 1)()
    assert float(module(torch.zeros(()))) == 1
    undo()
    assert "forward" not in vars(module)
    assert float(module(torch.zeros(()))) == 0


class Failing(AttentionHook):
    def scores(self, layer: int, scores: Tensor) -> Tensor:
        raise ZeroDivisionError("inside attention")


@pytest.mark.parametrize("composite", ALONE, ids=lambda c: c.name)
def test_an_exception_inside_attention_leaves_nothing_behind(composite: Composite) -> None:
    adapter = fresh("llava")
    inputs = ZOO["llava"].inputs(adapter.model)
    attribute(adapter, inputs)
    before, scalars = snapshot(adapter.model), adapter.head_scalars
    with pytest.raises(ZeroDivisionError), attached(adapter, composite, Failing()):
        adapter.hidden(adapter.capture(inputs))
    assert snapshot(adapter.model) == before
    assert adapter.head_scalars is scalars
    with torch.no_grad():
        assert torch.isfinite(adapter.model(**inputs).logits).all()


def test_a_survey_that_fails_leaves_nothing_behind() -> None:
    adapter = fresh("llava")
    adapter.decoder.layers[1].mlp.act_fn = torch.nn.Softmax(-1)
    before = snapshot(adapter.model)
    with pytest.raises(Exception, match="without an activation module"), attached(adapter, ATTN_LRP):
        pass
    assert snapshot(adapter.model) == before


def test_a_soft_cap_passes_relevance_on_and_is_put_back() -> None:
    adapter = built("paligemma2")
    scalars = adapter.head_scalars
    assert scalars.cap == 6.0
    assert scalars.rule is None
    with attached(adapter, ATTN_LRP):
        assert adapter.head_scalars.rule is not None
        raw = torch.tensor([5.0], requires_grad=True)
        value = adapter.head_scalars(raw)
        (gradient,) = torch.autograd.grad(value, raw)
        assert float(gradient * raw.detach()) == pytest.approx(float(value.detach()), rel=1e-6)
    assert adapter.head_scalars is scalars
    with attached(adapter, GRADIENT_INPUT):
        assert adapter.head_scalars is scalars


def test_attention_outside_the_interface_is_reported_after_the_run() -> None:
    adapter = fresh("llava")
    attention = adapter.decoder.layers[1].self_attn
    attention.forward = lambda hidden_states, *a, **k: (hidden_states, None)
    with pytest.raises(HookError) as caught, attached(adapter, ATTN_LRP):
        adapter.hidden(adapter.capture(ZOO["llava"].inputs(adapter.model)))
    assert "layers [1]" in str(caught.value)
    assert caught.value.hint


def test_a_block_without_a_forward_raises_nothing() -> None:
    with attached(built("llava"), ATTN_LRP):
        pass


def test_two_threads_with_two_models_do_not_mix() -> None:
    names = ("llava", "qwen2_5_vl")
    adapters = {n: fresh(n) for n in names}
    inputs = {n: ZOO[n].inputs(adapters[n].model) for n in names}
    want = {
        (n, c.name): attribute(adapters[n], inputs[n], composite=c).scores for n in names for c in (ATTN_LRP, CP_LRP)
    }
    wrong: list[Any] = []
    gate = threading.Barrier(2, timeout=60)

    def work(name: str, composite: Composite) -> None:
        try:
            gate.wait()
            for _ in range(8):
                got = attribute(adapters[name], inputs[name], composite=composite).scores
                if not torch.equal(got, want[name, composite.name]):
                    wrong.append((name, composite.name))
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            wrong.append(error)

    for pair in ((ATTN_LRP, CP_LRP), (CP_LRP, ATTN_LRP)):
        threads = [threading.Thread(target=work, args=a) for a in zip(names, pair, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
            assert not thread.is_alive()
    assert not wrong
