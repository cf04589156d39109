"""ResLRP's rule of residual additions: by hand, conserving, the same forward and backward, refused where there is no stream."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from limelight.errors import LimelightError, UnknownKindError
from limelight.models.adapter import Adapter
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import ATTN_LRP, RES_LRP, Composite
from limelight.relevance.kind import ModuleMatch
from limelight.relevance.layers import residual
from limelight.relevance.mode import Mode
from tests.relevance.forward.helpers import backward_sums, close, prefilled
from tests.slow_twins.balance import sheet
from tests.tiny import built, llava, llava_inputs, snapshot
from tests.wide import prompt
from tests.zoo import FOUNDATION, ZOO

numbers = st.floats(-4, 4).map(lambda x: 0.0 if abs(x) < 1e-6 else x)


def test_factors_by_hand() -> None:
    x, z = torch.tensor([3.0, 3.0, -1.0, 0.0]), torch.tensor([1.0, -1.0, 3.0, 0.0])
    to_x, to_z = residual.factors(x, z, x + z)
    # both agree: 1; 3 agrees and -1 does not: 2 * 3 - 1 = 5 for a sum of 2; the same turned round; nothing at all: 1
    torch.testing.assert_close(to_x, torch.tensor([1.0, 2 * 2 / 5, 2 / 5, 1.0]))
    torch.testing.assert_close(to_z, torch.tensor([1.0, 2 / 5, 2 * 2 / 5, 1.0]))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.floats(0, 3))
def test_conserving_and_bounded(pairs: list[tuple[float, float]], gamma: float) -> None:
    x, z = torch.tensor(pairs, dtype=torch.float64).T
    out = x + z
    to_x, to_z = residual.factors(x, z, out, gamma)
    torch.testing.assert_close(to_x * x + to_z * z, out, atol=1e-9, rtol=1e-9)
    for f in (to_x, to_z):
        assert bool(((f >= -1e-12) & (f <= 1 + gamma + 1e-9)).all())


def test_without_gamma_it_is_the_plain_sum() -> None:
    model = llava()
    adapter, inputs = Adapter(model), llava_inputs(model)
    zero = Composite("zero", {**ATTN_LRP.rules, "residual": residual.agreeing(0.0)}, (4, 4, 2))
    got, want = (attribute(adapter, inputs, 17, composite=c).scores for c in (zero, ATTN_LRP))
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    assert not torch.allclose(attribute(adapter, inputs, 17, composite=RES_LRP).scores, want)


def test_only_the_softmax_loses_relevance() -> None:
    """The balance sheet closes: every residual addition conserves."""
    model = llava()
    got = sheet(Adapter(model), llava_inputs(model), RES_LRP)
    assert got["relevance"] + got["attention"] + got["eps"] == pytest.approx(got["logit"], abs=1e-12)


def test_the_value_is_the_models_own_and_the_model_is_left_alone() -> None:
    adapter = built("llava", torch.float32)
    inputs, call, _ = prompt("llava", adapter)
    before = snapshot(adapter.model)
    with torch.no_grad():
        want = adapter.hidden(call)
    with attached(adapter, RES_LRP):
        embeds = call.embeds.clone().requires_grad_(True)
        assert torch.equal(adapter.hidden(call, embeds), want)
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize("name", FOUNDATION)
def test_forward_mode_is_the_backward_route_or_both_refuse(name: str) -> None:
    dtype = torch.float32 if "no_float64" in ZOO[name].marks else torch.float64
    adapter = built(name, dtype)
    try:
        inputs, call, media_mask = prompt(name, adapter)
        attribute(adapter, inputs, 3, composite=RES_LRP)
    except LimelightError as error:
        assert "attnlrp" in error.hint or "exact mode" in error.hint, error
        return
    logits, phi = prefilled(adapter, call, media_mask, RES_LRP)
    targets = [3, 17, 64]
    _, want = backward_sums(adapter, call, media_mask, targets, RES_LRP)
    close(phi[:, 0, targets], want, 2e-5)


class Stream(nn.Module):
    """A layer that adds in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way = nn.Linear(4, 4, bias=False, dtype=torch.float64), way

    def forward(self, hidden_states: Tensor) -> Tensor:
        branch = self.inner(hidden_states)
        if self.way == "reversed":
            return branch + hidden_states
        if self.way == "function":
            return torch.add(hidden_states, branch, alpha=0.5)
        if self.way == "augmented":
            branch += hidden_states
            return branch
        if self.way == "in place":
            branch.add_(hidden_states)
            return branch
        if self.way == "twice":
            return (hidden_states + branch) + branch * 2
        return branch


def ruled(way: str, x: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    layer = Stream(way)
    (attach,) = residual.agreeing()(ModuleMatch("residual", "layers.0", layer), Mode(graph="surrogate", backward=True))
    undo = attach()
    try:
        out = layer(x)
    finally:
        undo()
    return out, layer.inner(x).detach(), layer


@pytest.mark.parametrize("way", ["reversed", "function", "augmented", "in place", "twice"])
def test_however_a_layer_adds(way: str) -> None:
    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out, branch, layer = ruled(way, x)
    own = x.detach()
    seed = torch.randn_like(own)
    (grad,) = torch.autograd.grad((out * seed).sum(), x)
    branch = branch * {"function": 0.5}.get(way, 1.0)
    weight = layer.inner.weight.detach()
    if way == "twice":
        first = own + branch
        fx2, fz2 = residual.factors(first, 2 * branch, first + 2 * branch)
        fx1, fz1 = residual.factors(own, branch, first)
        want = seed * fx2 * fx1 + (seed * fx2 * fz1 + 2 * seed * fz2) @ weight
    else:
        fx, fz = residual.factors(own, branch, own + branch)
        want = seed * fx + (seed * fz * {"function": 0.5}.get(way, 1.0)) @ weight
    torch.testing.assert_close(grad, want)


def test_what_cannot_be_ruled_is_refused() -> None:
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnknownKindError, match="adds nothing"):
        ruled("none", x)
    with pytest.raises(UnknownKindError, match="one residual stream"):
        ruled("reversed", x[None])
