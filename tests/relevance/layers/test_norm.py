"""Norms are told by what they do to a sample, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from limelight.relevance.layers.norm import NormSpec, probe_norm
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import B, D, T, check_in, graphs, layouts, noise, ruled, second_order
from tests.tiny import WideNorm


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for n, p in enumerate(module.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(n)) * 0.3)
    return module


class Plain(nn.Module):
    """RMSNorm without a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def input_scaled() -> nn.Module:
    """Muse Spark's, which scales what goes in."""
    modeling = pytest.importorskip("transformers.models.muse_spark.modeling_muse_spark")
    norm: nn.Module = modeling.MuseSparkTextInputScaledRMSNorm(16)
    return norm


NORMS: list[tuple[Any, tuple[bool, bool, bool, bool]]] = [
    (lambda: LlamaRMSNorm(16), (False, True, False, False)),
    (lambda: nn.RMSNorm(16, eps=1e-5), (False, True, False, False)),
    (lambda: GemmaRMSNorm(16), (False, True, False, True)),
    (lambda: nn.LayerNorm(16), (True, True, True, False)),
    (lambda: nn.LayerNorm(16, bias=False), (True, True, False, False)),
    (Plain, (False, False, False, False)),
    (input_scaled, (False, True, False, True)),
]


class Small(nn.LayerNorm):
    """With weights far below one, as early layers have them."""

    def __init__(self) -> None:
        super().__init__(1024, bias=False)
        with torch.no_grad():
            self.weight.fill_(0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_weights_hide_no_mean(dtype: torch.dtype) -> None:
    """What is taken off in front is small against 1, not against the output."""
    spec = probe_norm(Small().to(dtype))
    assert spec is not None and spec.center
    assert probe_norm(Scaled(LargestNorm(), 1e-3).to(dtype)) is None


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, by: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((16,), by))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.inner(x)


@pytest.mark.parametrize(("make", "want"), NORMS, ids=range(len(NORMS)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_norm_is_recognised_by_its_computation(make: Any, want: Any, dtype: torch.dtype) -> None:
    spec = probe_norm(shaken(make()).to(dtype))
    assert spec is not None
    assert (spec.center, spec.weight is not None, spec.bias is not None, spec.plus_one) == want
    assert spec.first == ("InputScaled" in type(make()).__name__)


def test_a_gain_follows_its_weight() -> None:
    module = shaken(GemmaRMSNorm(8))
    spec = probe_norm(module)
    assert spec is not None
    before = spec.gain
    module.double()
    with torch.no_grad():
        module.weight += 1
    assert spec.gain is not None
    assert before is not None
    assert spec.gain.dtype == torch.float64
    torch.testing.assert_close(spec.gain, before.double() + 1)
    assert NormSpec(False, None, None, 1e-6).gain is None


class LargestNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.abs().amax(-1, keepdim=True)


def test_another_norm_is_none() -> None:
    assert probe_norm(LargestNorm()) is None
    assert probe_norm(nn.Conv1d(16, 16, 1)) is None
    assert probe_norm(shaken(nn.LayerNorm(16, eps=10.0))) is not None


class OnePlus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(noise(4, D) / 4), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class ScaledFirst(OnePlus):
    """The weight scales what comes in (Muse Spark)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * (1 + self.weight)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Weightless(nn.Module):
    dim, eps = D, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def layer_norm(**settings: Any) -> nn.LayerNorm:
    norm = nn.LayerNorm(D, dtype=torch.float64, **settings)
    for i, p in enumerate(norm.parameters()):
        p.data = noise(5 + i, D)
    return norm


RULED = {
    "rms": WideNorm(noise(3, D), 1e-6), "one plus": OnePlus(), "weightless": Weightless(), "layer": layer_norm(),
    "scaled first": ScaledFirst(), "layer without bias": layer_norm(bias=False), "layer of a large eps": layer_norm(eps=0.5),
}  # fmt: skip


def norm_by_rule(module: Any, x: Tensor) -> Tensor:
    """1/std is a constant; a bias adds to the value alone."""
    x = x * (1 + module.weight) if isinstance(module, ScaledFirst) else x
    centred = x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
    eps = getattr(module, "eps", None) or module.variance_epsilon
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach()
    out = centred * scale
    if isinstance(module, OnePlus):
        return out if isinstance(module, ScaledFirst) else out * (1 + module.weight)
    if not isinstance(module, Weightless):
        out = out * module.weight
    return out if getattr(module, "bias", None) is None else out + module.bias


@graphs
@layouts
@pytest.mark.parametrize("name", RULED)
def test_norm(name: str, graph: str, flat: bool) -> None:
    module = RULED[name]
    with torch.no_grad():
        check_in(graph, flat, lambda mode: ruled(module, "norm", mode), lambda x: norm_by_rule(module, x), module)


@graphs
@pytest.mark.parametrize("name", ["rms", "layer"])
def test_norm_of_heads(name: str, graph: str) -> None:
    """q and k norms see [rows, T, heads, d]."""
    module = RULED[name]
    check_in(
        graph, False, lambda mode: ruled(module, "norm", mode), lambda x: norm_by_rule(module, x), module, (B, T, 3, D)
    )


def test_one_block_is_the_module_itself() -> None:
    for module in RULED.values():
        x = noise(1, B, T, D)
        for graph in ("none", "true"):
            assert torch.equal(ruled(module, "norm", Mode(batch=B, graph=graph))(x), module(x))


@pytest.mark.parametrize("graph", ["surrogate", "true"])
def test_the_std_is_a_constant_of_the_surrogate(graph: str) -> None:
    """What the gradient of a tangent sees of block 0: nothing through 1/std (surrogate), everything (true)."""
    rows = ruled(RULED["layer"], "norm", Mode(batch=1, channels=2, graph=graph))
    second_order(rows, graph, sees=graph == "true")
