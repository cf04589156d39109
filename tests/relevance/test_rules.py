"""Each rule: the value bit for bit, the gradient of its equation, conservation, and what a second derivative does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional

from limelight.relevance import rules


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ACTIVATIONS = [functional.silu, functional.gelu, torch.tanh, functional.relu]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_identity_passes_relevance_on(act: object, seed: int) -> None:
    """R_in = R_out * z / (z + 1e-10): the paper's identity rule with its stabiliser."""
    z = noise(4, 5, seed=seed).requires_grad_(True)
    value = act(z.detach())  # type: ignore[operator]
    upstream = noise(4, 5, seed=seed + 10)
    out = rules.identity(z, value)
    assert torch.equal(out, value)
    (gradient,) = grad(out, z, upstream)
    r_in, r_out = gradient * z.detach(), upstream * value
    torch.testing.assert_close(r_in, r_out * z.detach() / (z.detach() + 1e-10), atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(r_in, r_out, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at", [0.0, -1e-10, 1e-10, -0.0, 6e-8, -6e4, 6e4])
def test_identity_is_finite_where_the_stabiliser_meets_zero(dtype: torch.dtype, at: float) -> None:
    """1e-10 underflows in float16 (0 / 0 at z = 0), and z + 1e-10 is zero at z = -1e-10."""
    z = torch.full((3,), at, dtype=dtype).requires_grad_(True)
    value = functional.silu(z.detach())
    out = rules.identity(z, value)
    assert torch.equal(out, value)
    assert out.dtype == dtype
    (gradient,) = grad(out.sum(), z)
    assert bool(torch.isfinite(gradient).all())
    assert gradient.dtype == dtype
    assert float(gradient.abs().max()) <= 1.1
    if at in (0.0, -0.0):
        assert float(gradient.abs().max()) == 0.0  # silu(0) = 0: no relevance to pass


def test_slope_is_a_constant_in_float32_or_better() -> None:
    z = noise(6, dtype=torch.float16).requires_grad_(True)
    slope = rules.slope(z, functional.silu(z))
    assert slope.dtype == torch.float32
    assert not slope.requires_grad
    assert rules.slope(noise(6), noise(6, seed=1)).dtype == torch.float64


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_uniform_divides_the_gradient(parts: int) -> None:
    x = noise(3, 4).requires_grad_(True)
    out = rules.uniform(x, parts)
    assert torch.equal(out, x.detach())
    upstream = noise(3, 4, seed=1)
    torch.testing.assert_close(grad(out, x, upstream)[0], upstream / parts, atol=0, rtol=0)


def test_uniform_shares_a_product_equally() -> None:
    a, u = noise(5).requires_grad_(True), noise(5, seed=1).requires_grad_(True)
    upstream = noise(5, seed=2)
    product = rules.uniform(a * u, 2)
    g_a, g_u = grad(product, (a, u), upstream)
    r_a, r_u = (g_a * a).detach(), (g_u * u).detach()
    torch.testing.assert_close(r_a, r_u, atol=1e-15, rtol=0)
    torch.testing.assert_close(r_a + r_u, upstream * (a * u).detach(), atol=1e-15, rtol=0)


def test_uniform_on_a_matrix_product_with_softmax() -> None:
    """What AttnLRP passes: half of R_O to V, and through the softmax half of <s, dO/ds>, shared by q and k."""
    q, k, v = (noise(6, 3, seed=s).requires_grad_(True) for s in range(3))
    upstream = noise(6, 3, seed=9)
    raw = rules.uniform(q, 4) @ rules.uniform(k, 4).T
    out = torch.softmax(raw, dim=-1) @ rules.uniform(v, 2)
    g_q, g_k, g_v, g_raw = grad(out, (q, k, v, raw), upstream)
    pairs = ((upstream, out), (g_q, q), (g_k, k), (g_v, v), (g_raw, raw))
    r_out, r_q, r_k, r_v, through_softmax = (float((g * x).sum().detach()) for g, x in pairs)
    assert r_v == pytest.approx(r_out / 2, abs=1e-13)
    assert r_q == pytest.approx(through_softmax / 4, abs=1e-13)
    assert r_k == pytest.approx(through_softmax / 4, abs=1e-13)
    assert r_q + r_k + r_v == pytest.approx(r_out - (r_out - through_softmax) / 2, abs=1e-13)


def test_dividing_by_zero_lets_nothing_through() -> None:
    x = noise(3).requires_grad_(True)
    out = rules.divided(x, 0)
    assert torch.equal(out, x)
    assert not out.requires_grad


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("with_gain", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_frozen_norm_conserves(center: bool, with_gain: bool, seed: int) -> None:
    """RMSNorm passes every entry's relevance on unchanged; LayerNorm without a bias conserves the sum."""
    x = noise(2, 3, 8, seed=seed).requires_grad_(True)
    gain = noise(8, seed=seed + 5) if with_gain else None
    base = x.detach() - (x.detach().mean(-1, keepdim=True) if center else 0)
    value = base * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + 1e-6)
    value = value if gain is None else value * gain
    out = rules.frozen_norm(x, value, gain=gain, center=center, eps=1e-6)
    assert torch.equal(out, value)
    upstream = noise(2, 3, 8, seed=seed + 7)
    r_in, r_out = grad(out, x, upstream)[0] * x.detach(), upstream * value
    torch.testing.assert_close(r_in.sum(-1), r_out.sum(-1), atol=1e-13, rtol=0)
    if not center:
        torch.testing.assert_close(r_in, r_out, atol=1e-13, rtol=0)


def test_a_tangent_through_the_norm_is_the_rules_own_jacobian() -> None:
    x, direction, gain = noise(2, 8), noise(2, 8, seed=1), noise(8, seed=2)
    for center in (False, True):

        def frozen(y: Tensor, center: bool = center) -> Tensor:
            return rules.frozen_norm(y, y.detach(), gain=gain, center=center, eps=1e-6)

        leaf = x.clone().requires_grad_(True)
        basis = torch.eye(16, dtype=torch.float64).reshape(16, 2, 8)
        rows = torch.stack([grad(frozen(leaf), leaf, row)[0] for row in basis])
        want = (rows * direction).sum((1, 2)).reshape(2, 8)
        base, moved = (y - y.mean(-1, keepdim=True) if center else y for y in (x, direction))
        got = moved * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + 1e-6) * gain
        torch.testing.assert_close(got, want, atol=1e-13, rtol=0)


def test_gradient_of_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    x = noise(4).requires_grad_(True)
    out = rules.gradient_of(x**3, x.detach() + 1)
    assert torch.equal(out, x.detach() + 1)
    torch.testing.assert_close(grad(out.sum(), x)[0], 3 * x.detach() ** 2)


def test_second_derivatives_go_through_the_rules_again() -> None:
    """Factors act again and constants stay constants; the curvature of the value itself does not appear."""
    x = noise(4).requires_grad_(True)
    (first,) = grad((rules.uniform(x, 4) ** 3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, 3 * x**2 / 4)
    (second,) = grad(first.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach() / 16)  # divided once more

    z = noise(4, seed=1).requires_grad_(True)
    u = noise(4, seed=2).requires_grad_(True)
    slope = rules.slope(z, functional.silu(z))
    (first,) = grad((rules.identity(z, functional.silu(z.detach())) * u).sum(), z, create_graph=True)
    torch.testing.assert_close(first, slope * u)
    by_z, by_u = grad(first.sum(), (z, u), allow_unused=True)
    assert by_z is None or not by_z.abs().any()  # the slope is a constant
    torch.testing.assert_close(by_u, slope)

    (first,) = grad((rules.gradient_of(x**3, x.detach()) * x).sum(), x, create_graph=True)
    torch.testing.assert_close(first, 3 * x**3 + x, atol=1e-12, rtol=0)


def test_rules_agree_with_the_form_of_the_paper() -> None:
    """Function or ``x / f + const(x - x / f)``: first and second derivatives are the same."""
    x, w = noise(5).requires_grad_(True), noise(5, seed=1)

    def written(y: Tensor, parts: int) -> Tensor:
        return y / parts + (y - y / parts).detach()

    for parts in (2, 4):
        pair = []
        for rule in (rules.uniform, written):
            (first,) = grad((torch.sin(rule(x, parts)) * w).sum(), x, create_graph=True)
            (second,) = grad((first**2).sum(), x)
            pair.append((first.detach(), second))
        torch.testing.assert_close(pair[0], pair[1], atol=1e-13, rtol=0)
