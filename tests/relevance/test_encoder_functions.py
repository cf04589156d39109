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
        watch = FunctionRules(divisors)
        watch.inside = ["encoder.part (Part)"]
        watch.attending = watch.inside[:] if attending else []
        with watch:
            return function(x)

    return call


@pytest.mark.parametrize(
    "function",
    [functional.gelu, lambda x: functional.gelu(x, approximate="tanh"), lambda x: functional.gelu(input=x), torch.tanh,
     functional.silu, functional.relu, lambda x: functional.leaky_relu(x, 0.2), torch.asinh, lambda x: x.tanh(),
     functional.relu6, functional.hardtanh, lambda x: functional.celu(x, 0.5)],
    ids=range(12),
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


def attend_otherwise(x: Tensor) -> Tensor:
    """The same, with operands in a list, by name, and in other functions."""
    q, k, v = x
    scores = torch.einsum("id,jd->ij", [q, k]) / 2  # type: ignore[arg-type]
    return torch.mm(input=torch.special.softmax(scores, -1), mat2=v)


@pytest.mark.parametrize("divisors", EVERY)
@pytest.mark.parametrize("bias", [None, noise(4, 5, 5)], ids=["plain", "biased"])
def test_attention_written_out_goes_by_the_rule_of_attention(divisors: Divisors, bias: Tensor | None) -> None:
    x = noise(3, 3, 5, 4)
    value, got = gradient(ruled(lambda z: attend(z, bias=bias), divisors, attending=True), x)
    assert torch.equal(value, attend(x, bias=bias))
    want = gradient(lambda z: attend(z, divisors, bias), x)[1]
    torch.testing.assert_close(got, want, atol=1e-14, rtol=0)
    if bias is None:
        torch.testing.assert_close(
            gradient(ruled(attend_otherwise, divisors, attending=True), x)[1], want, atol=1e-14, rtol=0
        )


def test_where_limelights_attention_runs_nothing_is_changed() -> None:
    x = noise(3, 3, 5, 4)

    def call(z: Tensor) -> Tensor:
        watch = FunctionRules((4, 4, 2))
        watch.routed = True
        with watch:
            return attend(z)

    assert torch.equal(gradient(call, x)[1], gradient(attend, x)[1])


def test_the_products_of_gated_mlps_are_left_to_their_rule() -> None:
    x = noise(6, 4, 8)
    watch = FunctionRules((4, 4, 2), {"mlp (Gated)"})
    watch.inside = ["mlp (Gated)"]
    with watch:
        assert torch.equal(gradient(lambda z: z * z, x)[1], 2 * x * noise(9, 4, 8))
        with pytest.raises(UnsupportedError, match=r"mlp \(Gated\) computes sigmoid"):
            gradient(torch.sigmoid, x)


NARROW = ["softmax", "sigmoid", "exp", "log", "sqrt", "rsqrt", "square", "abs", "reciprocal", "sin", "cos", "erf", "softplus", "logsigmoid", "hardsigmoid", "softsign", "exp2", "log1p", "norm", "var", "std", "prod", "logsumexp", "amax", "maximum", "multiply", "mm", "addmm", "linear", "dot", "outer", "true_divide", "cosine_similarity", "instance_norm", "layer_norm", "normalize", "max_pool1d", "softmin"]  # fmt: skip
CURVED: dict[str, Callable[[Tensor], Any]] = {
    "x.softmax": lambda x: x.softmax(-1), "special": lambda x: torch.special.expit(x), "mul": lambda x: x * x,
    "matmul": lambda x: x @ x.T, "einsum": lambda x: torch.einsum("ij,kj->ik", x, x), "div": lambda x: x / x.sum(),
    "div by name": lambda x: torch.div(x, other=x), "1 /": lambda x: 1 / x, "pow": lambda x: x**2, "2 **": lambda x: 2**x,
    "relu": lambda x: functional.relu(x, inplace=True), "relu by place": lambda x: functional.leaky_relu(x, 0.2, True),
    "exp_": lambda x: (x * 1).exp_(), "div_": lambda x: (x * 1).div_(x), "vector_norm": torch.linalg.vector_norm,
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(x, x, x),
    "baddbmm": lambda x: torch.baddbmm(torch.zeros(1, 4, 4, dtype=x.dtype), x[None], x.T[None]),
}  # fmt: skip
TWO = {"maximum", "multiply", "true_divide", "cosine_similarity", "linear"}


def named(name: str) -> Callable[[Tensor], Any]:
    """A function of torch on ``x`` [4, 8]; of two arguments with ``x`` as both."""
    function = getattr(functional, name, None) or getattr(torch, name)
    more: dict[str, tuple[Any, ...]] = {"layer_norm": ((8,),), "max_pool1d": (2,), "softmin": (-1,), "softmax": (-1,)}
    if name in TWO:
        return lambda x: function(x, x)
    if name in ("dot", "outer"):
        return lambda x: function(x[0], x[1])
    if name in ("mm", "addmm"):
        return lambda x: function(*([torch.zeros(4, 4, dtype=x.dtype)] if name == "addmm" else []), x, x.T)
    if name == "instance_norm":
        return lambda x: function(x[None])
    return lambda x: function(x, *more.get(name, ((-1,) if name in ("prod", "logsumexp", "amax") else ())))


@pytest.mark.parametrize("name", [*CURVED, *NARROW])
def test_what_has_no_rule_is_named(name: str) -> None:
    function = CURVED.get(name) or named(name)
    x = (noise(5, 4, 8).abs() + 0.1).requires_grad_(True)
    with pytest.raises(UnsupportedError, match=r"encoder\.part \(Part\) computes"):
        ruled(function)(x)
    ruled(function)(x.detach().clone())  # constants, such as angles of positions, may be anything


def test_batch_norms_by_the_statistics_of_the_batch_are_named() -> None:
    x = noise(5, 4, 8).requires_grad_(True)
    for module in (nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8, affine=False, track_running_stats=False).eval()):
        with pytest.raises(UnsupportedError, match="computes batch_norm"):
            ruled(module.double())(x)
    running = nn.BatchNorm1d(8, affine=False).double().eval()
    assert torch.equal(ruled(running)(x), running(x))


def test_what_is_linear_passes() -> None:
    x, constant = noise(5, 4, 8).requires_grad_(True), noise(6, 4, 8)

    def call(z: Tensor) -> Tensor:
        y = z * constant + (z / 2 - z.mean()) @ torch.eye(8, dtype=z.dtype)
        return functional.linear(torch.cat([y, y.flip(0)]).clamp(-1e9, 1e9), constant).reshape(2, -1).sum(0)

    assert torch.equal(ruled(call)(x), call(x))
