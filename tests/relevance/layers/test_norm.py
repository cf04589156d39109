"""Norms are told by what they do to a sample, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkTextInputScaledRMSNorm

from limelight.relevance.layers.norm import NormSpec, probe_norm


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for n, p in enumerate(module.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(n)) * 0.3)
    return module


class Plain(nn.Module):
    """RMSNorm without a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


NORMS: list[tuple[Any, tuple[bool, bool, bool, bool]]] = [
    (lambda: LlamaRMSNorm(16), (False, True, False, False)),
    (lambda: nn.RMSNorm(16, eps=1e-5), (False, True, False, False)),
    (lambda: GemmaRMSNorm(16), (False, True, False, True)),
    (lambda: nn.LayerNorm(16), (True, True, True, False)),
    (lambda: nn.LayerNorm(16, bias=False), (True, True, False, False)),
    (Plain, (False, False, False, False)),
    (lambda: MuseSparkTextInputScaledRMSNorm(16), (False, True, False, True)),
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
def test_every_norm_is_told_by_what_it_does(make: Any, want: Any, dtype: torch.dtype) -> None:
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
