"""Gates that keep what stands out: the model's own values, the derivative of the plain formula, relevance conserved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jvp

from limelight.errors import UnknownKindError
from limelight.relevance.layers.gated_mlp import gated_spec
from limelight.relevance.layers.gaussian_topk import deviations_of, kept, kept_blocks, kept_jvp
from limelight.relevance.mode import Mode
from tests.tiny import fresh

K = 0.7


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(g: Tensor) -> Tensor:
    return torch.relu(g - g.mean(-1, keepdim=True) - K * g.std(-1, keepdim=True, unbiased=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_values_are_the_models_own(share: float, dtype: torch.dtype) -> None:
    mlp = fresh("gemma3n", dtype).decoder.layers[0].mlp
    mlp.activation_sparsity = share
    deviations = deviations_of(mlp)
    assert deviations is not None
    g = noise(1, 3, 5, 48).to(dtype)
    value = kept(g, deviations)
    assert torch.equal(value, mlp._gaussian_topk(g))
    assert float((value > 0).float().mean()) == pytest.approx(1 - share, abs=0.04)
    spec = gated_spec(mlp)
    assert spec is not None and spec.deviations == deviations
    assert (spec.gate, spec.up) == (mlp.gate_proj, mlp.up_proj)


def test_an_mlp_that_cuts_elsewhere_is_refused() -> None:
    mlp = fresh("gemma3n").decoder.layers[0].mlp
    mlp._gaussian_topk = lambda g: torch.relu(g - 0.3)
    with pytest.raises(UnknownKindError, match="gated MLP"):
        gated_spec(mlp)
    mlp.activation_sparsity = 0.0
    assert deviations_of(mlp) is None
    assert gated_spec(mlp) is not None


def test_tangents_are_the_derivative_and_conserve() -> None:
    g, t = noise(2, 4, 9), noise(3, 4, 9)
    value, want = jvp(plain, g, t)
    torch.testing.assert_close(kept(g, K), value)
    torch.testing.assert_close(kept_jvp(g, t, value, K), want)
    torch.testing.assert_close(kept_jvp(g, g, value, K), value)  # relevance: g itself is the tangent
    flat = torch.ones(1, 9, dtype=torch.float64)
    assert torch.equal(kept_jvp(flat, t[:1], kept(flat, K), K), torch.zeros(1, 9, dtype=torch.float64))


@pytest.mark.parametrize("graph", ["none", "surrogate", "true"])
def test_blocks(graph: str) -> None:
    g, t, weights = noise(4, 2, 9).requires_grad_(True), noise(5, 2, 9), noise(6, 2, 9)
    out = kept_blocks(Mode(graph=graph), torch.stack([g, t]), K)
    value, want = jvp(plain, g.detach(), t)
    torch.testing.assert_close(out.detach(), torch.stack([value, want]))
    if graph == "none":
        return
    (first,) = torch.autograd.grad((out[0] * weights).sum(), g, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad((plain(g) * weights).sum(), g)[0])
    second = torch.autograd.grad((out[1] * weights).sum(), g, allow_unused=True)[0]
    if graph == "surrogate":  # what is constant stays so
        assert second is None or not bool(second.any())
        return
    (slope,) = torch.autograd.grad((plain(g) * weights).sum(), g, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad((slope * t).sum(), g)[0])
