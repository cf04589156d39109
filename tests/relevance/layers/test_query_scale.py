"""Modules that scale by what their further arguments say are linear, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.relevance.layers.query_scale import takes_more
from tests.relevance.layers.helpers import backward, ruled


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
