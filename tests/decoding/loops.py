"""What the tests of the token loop share: tiny models, strategies, and one call of generate()."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import limelight
from limelight.decoding.loop import custom_generate
from limelight.models.adapter import Adapter
from tests.zoo import ZOO

FAMILIES = ("llava", "qwen2_5_vl", "qwen2_audio", "gemma3", "paligemma2")
STRATEGIES: dict[str, Any] = {
    "greedy": limelight.greedy(), "lime": limelight.lime(steps=3, lr=1e-3), "one step": limelight.lime(steps=1)
}  # fmt: skip
strategies = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def inputs_of(adapter: Adapter, name: str = "llava") -> dict[str, Tensor]:
    return ZOO[name].inputs(adapter.model)


def batch_of(adapter: Adapter, name: str = "llava") -> dict[str, Tensor]:
    batch = ZOO[name].batch
    assert batch is not None
    return batch(adapter.model)


def run(adapter: Adapter, strategy: Any, inputs: Any = None, *, bound: Any = None, **kwargs: Any) -> Any:
    settings = {"max_new_tokens": 4, "do_sample": False, **kwargs}
    inputs = inputs_of(adapter) if inputs is None else inputs
    return adapter.model.generate(**inputs, custom_generate=custom_generate(strategy, **(bound or {})), **settings)
