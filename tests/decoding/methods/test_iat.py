from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.iat import Iat, iat
from limelight.errors import SettingError, UnsupportedError
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from tests.decoding.peers import (
    CLOSE,
    FAMILIES,
    check_alone_and_in_a_batch,
    check_deep_twin,
    check_refusals,
    double,
    emitted,
    inputs_of,
    intervened,
    run,
)
from tests.slow_twins import scores as twin
from tests.slow_twins.full import forward

TOKENS = 5


@pytest.mark.parametrize("layers", [range(1, 3), range(4), None])
def test_equals_the_slow_twin(layers: range | None) -> None:
    more = {} if layers is None else {"start": layers.start, "stop": layers.stop}
    chosen = layers or range(1, 3)
    check_deep_twin(
        iat(alpha=1.5, **more), lambda model, x, media: twin.iat(model, x, len(media), 1.5, chosen), n=TOKENS
    )


class Uncached(AttentionHook):
    """The change for every query behind the prompt, in one forward of the whole sequence."""

    def __init__(self, prompt: int, alpha: float) -> None:
        self.prompt, self.alpha = prompt, alpha

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        p = self.prompt
        if scores.shape[-1] <= p or scores.shape[-2] != scores.shape[-1]:
            return scores
        out = scores.clone()
        part = out[..., p:, p:]
        allowed = part > torch.finfo(part.dtype).min / 2
        out[..., p:, p:] = torch.where(allowed, part + self.alpha * part.abs(), part)
        return out


@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token_equals_one_forward(name: str) -> None:
    """Sliding windows, left padding, M-RoPE, sound and video: the cache changes nothing."""
    adapter, inputs = double(name), inputs_of(name, "batch")
    out = run(adapter, inputs, iat(alpha=0.9, start=0), n=TOKENS)
    tokens = emitted(out, inputs)
    hook = Uncached(inputs["input_ids"].shape[1], 0.9)
    assert out.logits is not None
    for t in range(TOKENS):
        with adapter.routed(), attention_hooks(hook):
            wanted = forward(adapter.model, inputs, tokens[:, :t]).logits[:, -1]
        torch.testing.assert_close(out.logits[t], wanted, **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    check_alone_and_in_a_batch(name, iat(alpha=2.0, start=0))


def test_the_first_token_is_the_models() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    out = run(adapter, inputs, iat(alpha=3.0, start=0), bind={"details": True})
    plain = run(adapter, inputs, greedy(), n=1)
    assert torch.equal((out.logits or ())[0], (plain.logits or ())[0])
    assert intervened(out) == [False, True, True]
    assert out.steps is not None
    said = emitted(out, inputs)
    assert [s.plain for s in out.steps[0]] == [
        int(forward(adapter.model, inputs, said[:, :t]).logits[0, -1].argmax()) for t in range(3)
    ]


def test_a_static_cache_has_more_keys_than_positions() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    plain = run(adapter, inputs, iat(alpha=3.0, start=0), n=TOKENS)
    static = run(adapter, inputs, iat(alpha=3.0, start=0), n=TOKENS, cache_implementation="static")
    assert torch.equal(plain.sequences, static.sequences)


def test_what_it_cannot_do() -> None:
    check_refusals(iat(), iat(start=0, stop=5))
    with pytest.raises(UnsupportedError, match="use_cache"):
        run(double("llava"), inputs_of("llava"), iat(), use_cache=False)


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"start": -1}, {"start": 3, "stop": 3}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="iat"):
        Iat(**wrong)
