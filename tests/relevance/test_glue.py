"""Containers with linears and no activation: told to do nothing of their own, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.relevance.glue import linear_around
from limelight.relevance.kinds import survey
from tests.tiny import fresh

D, WIDTH = 6, 4


class Between(nn.Module):
    """Linears around a norm and a function, and something of its own if asked."""

    def __init__(self, own: str = "") -> None:
        super().__init__()
        self.before, self.norm, self.inner, self.after = (
            nn.Linear(D, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, D),
        )  # fmt: skip
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.norm(self.before(x)))
        if self.own == "relu":
            y = y.relu()
        if self.own == "product":
            y = y * self.before(x)
        return self.after(y) + 2 * x


def test_what_is_linear_between_its_children() -> None:
    module = Between()
    assert linear_around(module)
    assert not module._forward_hooks and not any(c._forward_hooks for c in module.children())
    for own in ("relu", "product"):
        assert not linear_around(Between(own))
    assert not linear_around(nn.Sequential(nn.LayerNorm(D)))


def test_experts_between_two_projections() -> None:
    adapter = fresh("muse_spark")
    block = adapter.decoder.layers[1].mlp
    deciding = {id(m) for m in block.gate.modules()}
    assert linear_around(block, deciding)
    survey(adapter.decoder)
    plain = block.forward
    block.forward = lambda x: plain(x).relu()
    assert not linear_around(block, deciding)
    with pytest.raises(UnknownKindError, match="mlp"):
        survey(adapter.decoder)


@torch.no_grad()
def test_a_probe_leaves_the_block_as_it_was() -> None:
    block = fresh("muse_spark").decoder.layers[1].mlp
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    want = block(x)
    linear_around(block, {id(m) for m in block.gate.modules()})
    assert torch.equal(block(x), want)
