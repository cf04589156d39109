"""Single operations against the plain forms they stand for: values, gradients, and where only the eps would steer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from limelight.relevance.forward.fused import gated, root_mean_square
from limelight.relevance.mode import Mode
from limelight.relevance.rules import EPS

C, B, D = 3, 2, 5


def noise(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


def plain_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    y = x * torch.rsqrt(x[0].pow(2).mean(-1, keepdim=True) + eps)
    return y if gain is None else y * gain


def plain_gated(z: Tensor, u: Tensor, value: Tensor) -> Tensor:
    slope = Mode(graph="true").slope(z[0], value)
    return torch.cat([(value * u[0])[None], (z[1:] * slope * u[0] + value * u[1:]) / 2])


def agree(got: Tensor, want: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-13, rtol=1e-12)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(9), dtype=got.dtype)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("blocks", [1, C])
@pytest.mark.parametrize("gain", [None, noise(3, D).detach()])
def test_norm(blocks: int, gain: Tensor | None) -> None:
    x = noise(0, blocks, B, 1, D)
    agree(root_mean_square(x, gain, 1e-5), plain_norm(x, gain, 1e-5), x)
    assert torch.autograd.gradcheck(lambda t: root_mean_square(t, gain, 1e-5), (x,))


@pytest.mark.parametrize("act", [functional.silu, functional.gelu, torch.tanh])
@pytest.mark.parametrize("blocks", [1, C])
def test_gated(act: Callable[[Tensor], Tensor], blocks: int) -> None:
    z, u = noise(1, blocks, B, 1, D), noise(2, blocks, B, 1, D)
    agree(gated(z, u, act(z[0])), plain_gated(z, u, act(z[0])), z, u)
    assert torch.autograd.gradcheck(lambda a, b: gated(a, b, act(a[0])), (z, u))


def test_where_only_the_eps_would_steer() -> None:
    z = torch.tensor([[0.0, -EPS, 1e-8, -1e-8, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0]], dtype=torch.float64).requires_grad_()
    u = noise(2, 2, 5)
    got = gated(z, u, functional.silu(z[0]))
    assert bool(torch.isfinite(got).all())
    agree(got, plain_gated(z, u, functional.silu(z[0])), z, u)
