"""Few rows by a tall matrix: the same numbers and gradient, and only where the head is a plain linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limelight.relevance.layers.output_head import FEW, plain_head, project


@pytest.mark.parametrize("batch", [1, 3, FEW])
def test_equal_to_the_head_in_value_and_gradient(batch: int) -> None:
    torch.manual_seed(0)
    head = nn.Linear(6, 40, bias=False, dtype=torch.float64)
    hidden = torch.randn(2, batch, 6, dtype=torch.float64, requires_grad=True)
    got, want = project(head, hidden), head(hidden)
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)
    for a, b in zip(*(torch.autograd.grad(x.sin().sum(), hidden) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(project(head, hidden), want, atol=1e-13, rtol=0)


def test_other_heads_are_called() -> None:
    hidden = torch.randn(2, 1, 6)
    biased = nn.Linear(6, 40)
    hooked = nn.Linear(6, 40, bias=False)
    hooked.forward = lambda x: torch.full((*x.shape[:-1], 40), 7.0)  # type: ignore[method-assign]
    assert plain_head(nn.Linear(6, 40, bias=False))
    assert not plain_head(biased)
    assert not plain_head(hooked)
    assert torch.equal(project(biased, hidden), biased(hidden))
    assert bool((project(hooked, hidden) == 7.0).all())
    listened = nn.Linear(6, 40, bias=False)
    for handle in (
        listened.register_forward_hook(lambda _m, _a, out: out * 3),
        listened.register_forward_pre_hook(lambda _m, args: (args[0] * 3,)),
    ):
        assert not plain_head(listened)
        assert torch.equal(project(listened, hidden), listened(hidden))
        handle.remove()
    narrow = nn.Linear(6, 40, bias=False, dtype=torch.bfloat16)
    assert torch.equal(project(narrow, hidden.bfloat16()), narrow(hidden.bfloat16()))
