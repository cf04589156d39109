"""Norms over channels: group norms, and layer norms of pictures with their channels in front."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.relevance.layers.norm import probe_norm
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import KINDS, B, D, check_in, graphs, noise, ruled


class ChannelsFirst(nn.LayerNorm):
    """SAM's and ConvNeXt's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def shaken(module: Any) -> Any:
    module = module.double()
    for i, p in enumerate(module.parameters()):
        p.data = noise(5 + i, *p.shape)
    return module


def by_rule(module: Any, x: Tensor) -> Tensor:
    """1/std of the channels, or of each group, is a constant; a bias adds to the value alone."""
    groups = x.reshape(len(x), getattr(module, "num_groups", 1), -1)
    if isinstance(module, ChannelsFirst):
        groups = x.movedim(1, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    out = centred * (centred.pow(2).mean(-1, keepdim=True) + module.eps).rsqrt().detach()
    out = out.movedim(-1, 1) if isinstance(module, ChannelsFirst) else out.reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    out = out if module.weight is None else out * module.weight.reshape(shape)
    return out if module.bias is None else out + module.bias.reshape(shape)


NORMS: dict[str, tuple[str, Any, tuple[int, ...]]] = {
    "one group": ("group_norm", lambda: nn.GroupNorm(1, D), (B, D, 5)),
    "groups": ("group_norm", lambda: nn.GroupNorm(4, D, eps=0.1), (B, D, 3, 2)),
    "groups without weights": ("group_norm", lambda: nn.GroupNorm(2, D, affine=False), (B, D, 5)),
    "channels": ("channel_norm", lambda: ChannelsFirst(D, eps=1e-3), (B, D, 2, 3)),
    "channels without bias": ("channel_norm", lambda: ChannelsFirst(D, bias=False), (B, D, 2, 3)),
}


@graphs
@pytest.mark.parametrize("name", NORMS)
def test_channel_norms(name: str, graph: str) -> None:
    kind, make, shape = NORMS[name]
    module = shaken(make()).requires_grad_(False)
    check_in(graph, False, lambda mode: ruled(module, kind, mode), lambda x: by_rule(module, x), module, shape)
    x = noise(1, *shape)
    leaf = x.clone().requires_grad_(True)
    rule = ruled(module, kind, Mode(graph="surrogate", backward=True))
    assert torch.equal(rule(leaf).detach(), module(x))
    (got,) = torch.autograd.grad((rule(leaf) * noise(2, *shape)).sum(), leaf)
    (want,) = torch.autograd.grad((by_rule(module, leaf) * noise(2, *shape)).sum(), leaf)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)


def test_each_is_recognised_once() -> None:
    for kind, make, _ in NORMS.values():
        found = [k.name for k in KINDS.values() if not k.of_decoder and list(k.recognise("m", shaken(make())))]
        assert found == [kind]
    plain = shaken(nn.LayerNorm(D))
    assert [k.name for k in KINDS.values() if not k.of_decoder and list(k.recognise("m", plain))] == ["norm"]
    assert not list(KINDS["channel_norm"].recognise("m", shaken(nn.BatchNorm2d(D)).train()))


def test_a_layer_norm_without_weights_is_a_norm() -> None:
    spec = probe_norm(nn.LayerNorm(24, elementwise_affine=False, eps=1e-3))
    assert spec is not None and spec.center and spec.eps == 1e-3
    assert probe_norm(nn.LayerNorm((24,), elementwise_affine=False)) is not None


def test_the_width_of_a_norm_may_be_a_number() -> None:
    class Own(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.normalized_shape, self.eps = width, 1e-3

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x, (self.normalized_shape,), eps=self.eps)

    spec = probe_norm(Own(24))
    assert spec is not None and spec.center and spec.eps == 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_in_sixteen_bits_values_are_the_models_and_gradients_near_the_rule(name: str, dtype: torch.dtype) -> None:
    kind, make, shape = NORMS[name]
    module = shaken(make()).requires_grad_(False)
    want_leaf = (noise(1, *shape) * 300).requires_grad_(True)  # variances beyond float16
    (want,) = torch.autograd.grad((by_rule(module, want_leaf) * noise(2, *shape)).sum(), want_leaf)
    narrow = module.to(dtype)
    leaf = want_leaf.detach().to(dtype).requires_grad_(True)
    out = ruled(narrow, kind, Mode(graph="surrogate", backward=True))(leaf)
    assert out.dtype is dtype and torch.equal(out.detach(), narrow(leaf.detach()))
    (got,) = torch.autograd.grad((out * noise(2, *shape).to(dtype)).sum(), leaf)
    near = 1e-4 if dtype is torch.float32 else 4e-2
    torch.testing.assert_close(got.double(), want, atol=near * float(want.abs().max()), rtol=0)
