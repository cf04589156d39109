"""Sparse attention with so few keys that the choice matters: the choice is the model's own, and a constant."""

from __future__ import annotations

import pytest
import torch

from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import CP_LRP
from tests.relevance.forward.helpers import prefilled
from tests.slow_twins.balance import sheet
from tests.tiny import fresh
from tests.wide import prompt
from tests.zoo import ZOO

SPARSE = ("dots3_note", "mistral_large4")
sparse = pytest.mark.parametrize("name", SPARSE)


def narrowed(name: str, keys: int, dtype: torch.dtype = torch.float32) -> Adapter:
    """The family with so few keys a query that the choice matters."""
    adapter = fresh(name, dtype)
    for site in classify_modules(adapter.decoder):
        if site.kind == "key_indexer":
            site.module.index_topk = keys
    return adapter


@sparse
def test_a_narrow_choice_is_the_models_own_and_relevance_conserves(name: str) -> None:
    adapter, wide = narrowed(name, 4), narrowed(name, 64)
    inputs = ZOO[name].inputs(adapter.model)
    with torch.no_grad():
        want = adapter.model(**inputs).logits
        assert torch.equal(adapter.logits(adapter.hidden(adapter.capture(inputs))), want)
        assert float((wide.model(**inputs).logits - want).abs().max()) > 0.01
    exact = narrowed(name, 4, torch.float64)
    got = sheet(exact, ZOO[name].inputs(exact.model), CP_LRP)
    logit = got.pop("logit")
    assert sum(got.values()) == pytest.approx(logit, abs=3e-6 * (1 + abs(logit)))


@sparse
def test_forward_mode_names_the_fallback(name: str) -> None:
    adapter = fresh(name)
    _, call, media_mask = prompt(name, adapter)
    with pytest.raises(UnsupportedError, match="indexer") as caught:
        prefilled(adapter, call, media_mask)
    assert "exact mode" in caught.value.hint
