"""Containers with linears and no activation: told to do nothing of their own, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.relevance.classify import classify_modules
from limelight.relevance.layers.affine_container import affine, side_branch
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
    assert affine(module)
    assert not module._forward_hooks and not any(c._forward_hooks for c in module.children())
    for own in ("relu", "product"):
        assert not affine(Between(own))
    assert not affine(nn.Sequential(nn.LayerNorm(D)))


def test_experts_between_two_projections() -> None:
    adapter = fresh("muse_spark")
    block = adapter.decoder.layers[1].mlp
    assert affine(block)
    classify_modules(adapter.decoder)
    plain = block.forward
    block.forward = lambda x: plain(x).relu()
    assert not affine(block)
    with pytest.raises(UnknownKindError, match="mlp"):
        classify_modules(adapter.decoder)


@torch.no_grad()
def test_a_probe_leaves_the_block_as_it_was() -> None:
    block = fresh("muse_spark").decoder.layers[1].mlp
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    want = block(x)
    affine(block)
    assert torch.equal(block(x), want)


class Branch(nn.Module):
    def __init__(self, bent: bool, rank: int = 2) -> None:
        super().__init__()
        self.down, self.up, self.norm = nn.Linear(6, rank), nn.Linear(rank, 6), nn.LayerNorm(6)
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        return x + self.norm(self.up(low.relu() if self.bent else low))


def test_a_side_branch_is_linear_up_to_its_norm() -> None:
    assert side_branch(Branch(bent=False))
    assert not side_branch(Branch(bent=True))
    assert not side_branch(nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)))
