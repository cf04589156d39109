from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.memvr import Memvr, entropy, injected, memvr
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from tests.decoding.peers import (
    CLOSE,
    TOKENS,
    check_against_twin,
    deep,
    deep_inputs,
    double,
    emitted,
    inputs_of,
    media_places,
    run,
)
from tests.slow_twins import memvr as twin
from tests.slow_twins import stack
from tests.slow_twins.full import last_logits
from tests.tiny import llava, llava_inputs, snapshot


def deciding(adapter: Adapter, inputs: dict[str, Any], start: int, stop: int) -> float:
    """A threshold that some forwards of a short answer pass and others do not."""
    values = sorted(threshold_values(adapter, inputs, start, stop))
    return sum(values[len(values) // 2 - 1 : len(values) // 2 + 1]) / 2


def threshold_values(adapter: Adapter, inputs: dict[str, Any], start: int, stop: int) -> list[float]:
    tokens = emitted(run(adapter, inputs, greedy(), n=TOKENS + 1), inputs)
    trace = stack.run(adapter.model, stack.prompt(adapter.model, inputs, tokens))
    first = inputs["input_ids"].shape[1] - 1
    return [
        max(
            twin.uncertainty(stack.exit_logits(adapter.model, trace.hidden[layer + 1][i]))
            for layer in range(start + 1, stop)
        )
        for i in range(first, first + TOKENS + 1)
    ]


@pytest.mark.parametrize("threshold", [0.0, None, 1.0])
def test_equals_the_slow_twin(threshold: float | None) -> None:
    adapter, inputs = deep(), deep_inputs()
    bound = deciding(adapter, inputs, 0, 3) if threshold is None else threshold
    out = run(adapter, inputs, memvr(ratio=0.4, threshold=bound, start=0, stop=3), n=TOKENS + 2)
    tokens = emitted(out, inputs)
    places = media_places(adapter, inputs)
    pairs = [
        twin.memvr(adapter.model, inputs, places, tokens[:, :t], 0.4, bound, range(1, 3)) for t in range(TOKENS + 2)
    ]
    check_against_twin(out, [logits for logits, _ in pairs], rows=1)
    assert out.steps is not None
    fired = [s.intervened for s in out.steps[0]]
    assert fired == [f for _, f in pairs]
    assert {0.0: all(fired), None: 0 < sum(fired) < len(fired), 1.0: not any(fired)}[threshold]


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "qwen2_5_vl_video", "gemma3", "qwen2_audio"])
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    adapter = double(name)
    strategy = memvr(ratio=0.5, threshold=0.5, start=-1, stop=1)
    batch = run(adapter, inputs_of(name, "batch"), strategy)
    for row, kind in enumerate(("single", "other")):
        alone = run(adapter, inputs_of(name, kind), strategy)
        assert alone.logits is not None
        assert batch.logits is not None
        torch.testing.assert_close(batch.logits[0][row], alone.logits[0][0], **CLOSE)
        plain = last_logits(adapter.model, inputs_of(name, kind), torch.zeros(1, 0, dtype=torch.long))
        assert alone.steps is not None
        assert torch.allclose(alone.logits[0], plain) != alone.steps[0][0].intervened


def test_published_layers_in_proportion() -> None:
    assert memvr().tested(32) == range(6, 16)
    assert memvr().tested(28) == range(5, 14)
    assert memvr().tested(4) == range(1, 3)
    assert memvr(start=2, stop=5).tested(8) == range(3, 5)
    assert memvr(start=2).tested(32) == range(3, 16)
    for depth in range(2, 90):
        tested = memvr().tested(depth)
        assert tested
        assert tested[-1] <= depth - 2


def test_the_defaults_work_on_a_small_model() -> None:
    adapter, inputs = deep(), deep_inputs()
    places, none = media_places(adapter, inputs), torch.zeros(1, 0, dtype=torch.long)
    out = run(adapter, inputs, memvr(threshold=0.0), n=1)
    wanted, fired = twin.memvr(adapter.model, inputs, places, none, 0.12, 0.0, range(1, 3))
    check_against_twin(out, [wanted], rows=1)
    assert fired


def test_formulas() -> None:
    assert float(entropy(torch.zeros(1, 30))) == pytest.approx(1.0)
    assert float(entropy(torch.tensor([[0.0] + [-99.0] * 11]))) == pytest.approx(0.0, abs=1e-6)
    two = torch.tensor([[0.0, 0.0] + [-99.0] * 11])
    assert float(entropy(two)) == pytest.approx(math.log(2) / math.log(10), rel=1e-5)
    x, out, v = torch.randn(4, 6), torch.randn(4, 6), torch.randn(5, 6)
    seen = (x @ v.T) @ v
    whole = injected(x, out, v, 1.0)
    torch.testing.assert_close(whole / seen, torch.full_like(seen, float(out.abs().mean() / seen.abs().mean())))
    torch.testing.assert_close(injected(x, out, v, 0.0), out)


def test_the_model_is_untouched_even_after_an_error() -> None:
    adapter = Adapter(llava(num_hidden_layers=4))
    inputs = llava_inputs(adapter.model)
    run(adapter, inputs, greedy(), n=1)
    before = snapshot(adapter.model)
    run(adapter, inputs, memvr(threshold=0.0, start=0, stop=3))
    assert snapshot(adapter.model) == before

    class BrokenError(RuntimeError):
        pass

    def fail(*args: Any) -> None:
        raise BrokenError

    handle = adapter.decoder.layers[3].register_forward_hook(fail)
    during = snapshot(adapter.model)
    with pytest.raises(BrokenError):
        run(adapter, inputs, memvr(threshold=0.0, start=0, stop=3))
    assert snapshot(adapter.model) == during
    handle.remove()
    assert snapshot(adapter.model) == before


def test_what_it_cannot_do() -> None:
    with pytest.raises(UnsupportedError, match="cross-attention"):
        run(double("mllama"), inputs_of("mllama"), memvr())
    with pytest.raises(SettingError, match=r"within 0\.\.0, got no layers \(start=2, stop=None\)") as raised:
        run(double("llava"), inputs_of("llava"), memvr(start=2))
    assert "this model has 2 layers, 0 to 1" in str(raised.value.hint)
    single = Adapter(llava(num_hidden_layers=1))
    with pytest.raises(SettingError, match=r"memvr needs a model of at least 2 layers"):
        run(single, llava_inputs(single.model), memvr())
    with pytest.raises(SettingError, match=r"layers \[3\]"):
        run(deep(), deep_inputs(), memvr(start=0, stop=4))


@pytest.mark.parametrize("wrong", [{"ratio": 2}, {"threshold": -0.1}, {"start": 3, "stop": 4}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="memvr"):
        Memvr(**wrong)
