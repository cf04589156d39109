"""Steps with fixed shapes are the ordinary steps: on every family that can take them, across a growing window, in batches."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from limelight.errors import LimelightError
from limelight.relevance.forward import static as static_step
from limelight.relevance.forward.static import StaticStep
from tests.relevance.forward.helpers import close, stream
from tests.relevance.forward.test_stream import RAISES
from tests.tiny import built
from tests.wide import prompt
from tests.zoo import ZOO

STEPS = 9
PLAIN = ("llava", "llava_onevision", "qwen2_5_vl", "qwen2_audio", "internvl", "idefics3")
ORDINARY = ("gemma3", "qwen3_vl", "mllama", "qwen3_5")  # windows, further features, states beside, recurrences


@torch.no_grad()
def steps(
    name: str, static: bool, monkeypatch: pytest.MonkeyPatch, row: int | None = 0
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], bool]:
    monkeypatch.setattr(static_step, "WINDOW", 8)
    exact = "no_float64" not in ZOO[name].marks
    adapter = built(name, torch.float64 if exact else torch.float32)
    _, call, media_mask = prompt(name, adapter, row)
    dual = stream(adapter, call, media_mask)
    if static:
        dual.static = StaticStep(dual, graphs=False)
    dual.prefill()
    out = []
    for i in range(STEPS):
        dual.append(torch.full((dual.batch,), 3 + i))
        logits, phi = dual.heads(dual.current())
        out.append((logits.clone(), phi.clone()))
    return out, dual.static.window > 0


@pytest.mark.parametrize("row", [0, None], ids=["one row", "padded batch"])
@pytest.mark.parametrize("name", PLAIN)
def test_fixed_shapes_change_no_number(name: str, row: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if row is None and ZOO[name].batch is None:
        pytest.skip("no batches in this family")
    mine, used = steps(name, True, monkeypatch, row)
    ordinary, _ = steps(name, False, monkeypatch, row)
    assert used
    tolerance = 1e-10 if "no_float64" not in ZOO[name].marks else 1e-5
    for (logits, phi), (own_logits, own_phi) in zip(mine, ordinary, strict=True):
        close(logits, own_logits, tolerance)
        close(phi, own_phi, tolerance)


@pytest.mark.parametrize("name", ORDINARY)
def test_what_fixed_shapes_do_not_cover_takes_the_ordinary_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in RAISES or name not in ZOO:
        pytest.skip("no forward mode in this family")
    _, used = steps(name, True, monkeypatch)
    assert not used


def test_on_a_processor_nothing_is_fixed() -> None:
    adapter = built("llava", torch.float32)
    _, call, media_mask = prompt("llava", adapter)
    dual = stream(adapter, call, media_mask)
    assert not dual.static.wanted


def test_the_position_of_a_prompt_is_never_a_fixed_step() -> None:
    adapter = built("llava", torch.float64)
    _, call, media_mask = prompt("llava", adapter)
    dual = stream(adapter, call, media_mask)
    dual.static = StaticStep(dual, graphs=False)
    dual.static.after = 0
    first = dual.heads(dual.prefill())
    dual.rewind()
    again = dual.heads(dual.current())
    assert dual.static.window == 0
    for a, b in zip(first, again, strict=True):
        close(a, b)


def test_a_stream_that_is_dropped_is_freed() -> None:
    adapter = built("llava", torch.float32)
    _, call, media_mask = prompt("llava", adapter)
    dual = stream(adapter, call, media_mask)
    step, gone = dual.static, weakref.ref(dual)
    gc.disable()
    try:
        del dual
        assert gone() is None
        with pytest.raises(LimelightError, match="has been freed"):
            _ = step.stream
    finally:
        gc.enable()
