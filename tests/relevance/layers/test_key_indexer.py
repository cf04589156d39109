"""Sparse attention with so few keys that the choice matters; scales by position are linear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import CP_LRP
from limelight.relevance.layers.query_scale import takes_more
from tests.relevance.forward.helpers import prefilled
from tests.relevance.layers.helpers import backward, ruled
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
    _, call, percept = prompt(name, adapter)
    with pytest.raises(UnsupportedError, match="indexer") as caught:
        prefilled(adapter, call, percept)
    assert "exact mode" in caught.value.hint


class Scale(nn.Module):
    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.scale, self.power = nn.Parameter(torch.ones(3)), power

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return x.sign() * x.abs() ** self.power * self.scale * positions[..., None]


class ResidualGate(nn.Module):
    """Both weigh (Muse Spark); bent: the residual decides how much is added."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.gate, self.bent = nn.Parameter(torch.tensor([0.3, -0.2, 0.9])), bent

    def forward(self, residual: Tensor, hidden_states: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate * residual if self.bent else self.gate)
        return (1 - self.gate) * residual + share * hidden_states


def test_a_gate_on_the_residual_is_linear_in_both_or_refused() -> None:
    x, y = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    assert takes_more(ResidualGate(False))
    for arguments in ((x, y), (x,)):
        more = {} if len(arguments) == 2 else {"hidden_states": y}
        got = ruled(ResidualGate(False), "query_scale", backward())(*arguments, **more)
        assert torch.equal(got, ResidualGate(False)(x, y))
        with pytest.raises(UnknownKindError, match="not linear"):
            ruled(ResidualGate(True), "query_scale", backward())(*arguments, **more)


def test_a_scale_by_position_is_linear_or_refused() -> None:
    x, positions = torch.randn(2, 4, 3), torch.arange(4.0)
    assert takes_more(Scale())
    assert not takes_more(nn.LayerNorm(3))
    assert torch.equal(ruled(Scale(), "query_scale", backward())(x, positions), Scale()(x, positions))
    with pytest.raises(UnknownKindError, match="not linear") as caught:
        ruled(Scale(2.0), "query_scale", backward())(x, positions)
    assert caught.value.hint
