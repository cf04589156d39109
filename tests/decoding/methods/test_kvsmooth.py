from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from limelight.decoding.methods.greedy import greedy
from limelight.decoding.methods.kvsmooth import Kvsmooth, kvsmooth, layer_cache, rank
from limelight.errors import SettingError, UnsupportedError
from tests.decoding.peers import (
    FAMILIES,
    check_alone_and_in_a_batch,
    check_deep_twin,
    check_refusals,
    double,
    inputs_of,
    intervened,
    run,
)
from tests.slow_twins import kvsmooth as twin

TOKENS = 7
CASES: list[tuple[float, float, int, range]] = [
    (0.9, 0.2, 15, range(4)), (0.5, 0.5, 3, range(4)), (0.4, 0.0, 1, range(1, 3)), (0.5, 0.3, 2, range(3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("strength", "radius", "window", "layers"), CASES)
def test_equals_the_slow_twin(strength: float, radius: float, window: int, layers: range) -> None:
    out = check_deep_twin(
        kvsmooth(strength=strength, radius=radius, window=window, start=layers.start, stop=layers.stop),
        lambda model, x, media: twin.kvsmooth(model, x, len(media), strength, radius, window, layers),
        n=TOKENS,
    )
    assert intervened(out) == [False, False, *[True] * (TOKENS - 2)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_alone_and_in_a_batch(name: str) -> None:
    check_alone_and_in_a_batch(name, kvsmooth(strength=0.5, radius=0.5, window=3, start=0), n=5)


def test_zero_is_the_model_itself() -> None:
    adapter, inputs = double("gemma3"), inputs_of("gemma3", "batch")
    out, plain = (run(adapter, inputs, s, n=4) for s in (kvsmooth(strength=0, radius=0), greedy()))
    assert torch.equal(out.sequences, plain.sequences)
    assert out.steps is not None
    assert not any(s.intervened for row in out.steps for s in row)


def test_ranks() -> None:
    recent = deque([torch.tensor([1.0, 5.0]), torch.tensor([2.0, 4.0]), torch.tensor([3.0, 3.0])])
    assert rank(recent, 4).tolist() == [0.5, 0.0]


def test_what_it_cannot_do() -> None:
    check_refusals(kvsmooth(), kvsmooth(start=0, stop=5))
    with pytest.raises(UnsupportedError, match="cannot in a Static"):
        run(double("llava"), inputs_of("llava"), kvsmooth(), cache_implementation="static")
    with pytest.raises(UnsupportedError, match="cannot in a NoneType"):
        layer_cache(None, 0)


@pytest.mark.parametrize(
    "wrong", [{"strength": 2}, {"radius": -1}, {"window": 0}, {"window": 1.5}, {"start": -1}, {"start": 3, "stop": 3}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="kvsmooth"):
        Kvsmooth(**wrong)
