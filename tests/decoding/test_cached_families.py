"""Cached LIME on every family that has tangents: a small step moves the objective, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch

from tests.decoding.cached import run
from tests.decoding.methods.test_meter import WORKING
from tests.tiny import built, snapshot
from tests.zoo import ZOO


@pytest.mark.parametrize("name", WORKING)
def test_a_small_update_lowers_the_loss(name: str) -> None:
    adapter = built(name)
    inputs = ZOO[name].inputs(adapter.model)
    with torch.no_grad():
        own = adapter.model(**inputs).logits[0, -1]
    before = snapshot(adapter.model)
    output = run(adapter, inputs, 1, updates=2, lr=1e-4, objective="difference", kl_weight=0.0)
    (step,) = output.steps[0]
    first, second = step.losses["total"]
    assert second < first
    assert step.plain == int(own.argmax())
    assert not torch.equal(output.logits[0][0], own)
    assert snapshot(adapter.model) == before
