"""Functions that encoders call themselves: each has the rule of the module that computes the same, or is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.errors import UnsupportedError
from limelight.relevance import rules
from limelight.relevance.encoder_functions import FunctionRules
from limelight.relevance.mode import Divisors

EVERY: tuple[Divisors, ...] = ((4, 4, 2), (0, 0, 1), (1, 1, 1))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_(True)
    out = function(leaf)
    (found,) = torch.autograd.grad((out * noise(9, *out.shape)).sum(), leaf)
    return out.detach(), found


def ruled(
    function: Callable[[Tensor], Tensor], divisors: Divisors = (4, 4, 2), attending: bool = False
) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        watch = FunctionRules(divisors, lambda: False)
        watch.inside, watch.attending = ["encoder.part (Part)"], int(attending)
        with watch:
            return function(x)

    return call


@pytest.mark.parametrize(
    "function",
    [functional.gelu, lambda x: functional.gelu(x, approximate="tanh"), lambda x: functional.gelu(input=x), torch.tanh,
     functional.silu, functional.relu, lambda x: functional.leaky_relu(x, 0.2), torch.asinh, lambda x: x.tanh()],
    ids=range(9),
)  # fmt: skip
def test_activations(function: Callable[[Tensor], Tensor]) -> None:
    x = noise(1, 3, 8)
    value, got = gradient(ruled(function), x)
    assert torch.equal(value, function(x))
    torch.testing.assert_close(got, gradient(lambda z: rules.identity(z, function(z)), x)[1], atol=0, rtol=0)
    assert torch.equal(gradient(ruled(lambda z: function(z).mul_(2)), x)[0], 2 * function(x))  # may be changed in place


@pytest.mark.parametrize("module", [nn.GLU(), nn.GLU(dim=1)])
def test_the_gate_of_glu_is_a_constant(module: nn.GLU) -> None:
    x = noise(2, 2, 6, 8)
    value, got = gradient(ruled(module), x)
    assert torch.equal(value, module(x))
    want = gradient(lambda z: z.chunk(2, module.dim)[0] * x.chunk(2, module.dim)[1].sigmoid(), x)[1]
    torch.testing.assert_close(got, want, atol=1e-14, rtol=0)


def attend(x: Tensor, divisors: Divisors | None = None, bias: Tensor | None = None) -> Tensor:
    """Attention over ``x`` [3, T, d]: queries, keys and values; with ``divisors`` under the rule of attention modules."""
    q, k, v = x if divisors is None else (rules.divided(y, n) for y, n in zip(x, divisors, strict=True))
    scores = torch.matmul(q, k.transpose(-1, -2)) / 2
    scores = scores if bias is None else scores + bias
    return torch.matmul(functional.softmax(scores, dim=-1), v)


@pytest.mark.parametrize("divisors", EVERY)
@pytest.mark.parametrize("bias", [None, noise(4, 5, 5)], ids=["plain", "biased"])
def test_attention_written_out_goes_by_the_rule_of_attention(divisors: Divisors, bias: Tensor | None) -> None:
    x = noise(3, 3, 5, 4)
    value, got = gradient(ruled(lambda z: attend(z, bias=bias), divisors, attending=True), x)
    assert torch.equal(value, attend(x, bias=bias))
    torch.testing.assert_close(got, gradient(lambda z: attend(z, divisors, bias), x)[1], atol=1e-14, rtol=0)


def test_where_limelights_attention_runs_nothing_is_changed() -> None:
    x = noise(3, 3, 5, 4)

    def call(z: Tensor) -> Tensor:
        with FunctionRules((4, 4, 2), lambda: True):
            return attend(z)

    assert torch.equal(gradient(call, x)[1], gradient(attend, x)[1])


CURVED: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "exp": torch.exp, "layer_norm": lambda x: functional.layer_norm(x, (8,)),
    "mul": lambda x: x * x, "matmul": lambda x: x @ x.T, "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "div": lambda x: x / x.sum(), "pow": lambda x: x**2, "relu": lambda x: functional.relu(x, inplace=True),
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVED)
def test_what_has_no_rule_is_named(name: str) -> None:
    x = noise(5, 4, 8).requires_grad_(True)
    with pytest.raises(UnsupportedError, match=r"encoder\.part \(Part\) computes"):
        ruled(CURVED[name])(x)
    constant = x.detach()
    ruled(CURVED[name])(constant.clone())  # constants, such as angles of positions, may be anything
    assert torch.equal(ruled(lambda z: z * constant + z / 2 @ torch.eye(8, dtype=z.dtype))(x), x * constant + x / 2)
