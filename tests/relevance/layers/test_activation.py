"""Elementwise functions pass relevance on by the identity rule, in both directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.relevance.layers import activation
from limelight.relevance.rules import EPS
from tests.relevance.layers.helpers import backward, check_in, graphs, layouts, noise, ruled


@graphs
@layouts
@pytest.mark.parametrize("module", [nn.SiLU(), nn.GELU(), nn.ReLU(), nn.Tanh()], ids=lambda m: type(m).__name__)
def test_activation(module: nn.Module, graph: str, flat: bool) -> None:
    def by_rule(z: Tensor) -> Tensor:
        return z * (module(z) / (z + EPS)).detach()

    check_in(graph, flat, lambda mode: ruled(module, "activation", mode), by_rule, module)


def test_a_backward_pass_keeps_the_value_bit_for_bit() -> None:
    z = noise(1, 4, 8).float().requires_grad_(True)
    out = ruled(nn.GELU(), "activation", backward())(z)
    assert torch.equal(out, nn.functional.gelu(z))
    (gradient,) = torch.autograd.grad(out.sum(), z)
    torch.testing.assert_close(gradient * z.detach(), out.detach(), atol=1e-6, rtol=1e-6)


def test_what_is_none() -> None:
    for module in (nn.Softmax(-1), nn.Identity(), nn.Dropout(0.1).eval(), nn.PReLU(), nn.Linear(8, 8)):
        assert not list(activation.recognise("m", module))
