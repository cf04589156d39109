"""Offsets inside one attention function: the same numbers as by hooks, and left to the hooks where it must be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limelight.grounding.lean import LeanDeltas
from limelight.models.runtime.attention import AttentionHook, attention, attention_hooks
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, Composite
from limelight.relevance.layers.attention import AttentionRule
from tests.grounding.test_deltas import Module, tensors

SHAPE = (2, 4, 5, 8)


def lean(composite: Composite, layers: tuple[int, ...] = (1,), dtype: torch.dtype = torch.float64) -> LeanDeltas:
    deltas = LeanDeltas(layers, dtype, composite)
    for layer in layers:
        deltas.qkv(layer, *[torch.zeros(SHAPE)] * 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in deltas.parameters():
            parameter.copy_(torch.randn(SHAPE, dtype=torch.float64, generator=generator) * 0.3)
    return deltas


class Eager(AttentionHook):
    """The same offsets by the hooks alone: no ``attend``."""

    def __init__(self, deltas: LeanDeltas) -> None:
        self.raw_scores, self.out = deltas.raw_scores, deltas.out  # type: ignore[method-assign]


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP, GRADIENT_INPUT], ids=lambda c: c.name)
@pytest.mark.parametrize("layers", [(1,), (7,)])
def test_equal_to_the_hooks_in_value_and_both_gradients(composite: Composite, layers: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v, mask = (x.requires_grad_(i < 3) for i, x in enumerate(tensors()))
    deltas = lean(composite, layers)
    seen: list[tuple[Tensor, ...]] = []
    for hook in (deltas, Eager(deltas)):
        with attention_hooks(AttentionRule(composite.attention), hook):
            out = attention(Module().eval(), q, k, v, mask, scaling=0.4)[0]
        inputs = (q, k, v) if composite is not CP_LRP else (v,)
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        loss = sum(g.square().sum() for g in first) + out[:, -1].sum()
        second = torch.autograd.grad(loss, [*inputs, *deltas.parameters()], allow_unused=True, materialize_grads=True)
        seen.append((out, *first, *second))
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_narrow_models_and_soft_caps_are_left_to_the_hooks() -> None:
    q, k, v, mask = tensors(torch.bfloat16)
    deltas = lean(ATTN_LRP, dtype=torch.bfloat16)
    with attention_hooks(deltas):
        got = attention(Module().eval(), q, k, v, mask)[0]
    with attention_hooks(Eager(deltas)):
        want = attention(Module().eval(), q, k, v, mask)[0]
    assert torch.equal(got, want)
    q, k, v, mask = tensors()
    with attention_hooks(lean(ATTN_LRP)):
        capped = attention(Module().eval(), q, k, v, mask, softcap=2.0)[0]
    with attention_hooks(Eager(lean(ATTN_LRP))):
        want = attention(Module().eval(), q, k, v, mask, softcap=2.0)[0]
    assert torch.equal(capped, want)


def test_offsets_follow_their_layer_to_its_device() -> None:
    """A model over several devices, as far as one device can show: the device of shapes alone."""
    q, k, v = (torch.randn(2, h, 5, 8, device="meta") for h in (4, 2, 2))
    deltas = lean(ATTN_LRP, dtype=torch.float32)
    with attention_hooks(deltas):
        out = attention(Module().eval(), q, k, v, None)[0]
    assert out.device.type == "meta"
    assert {p.device.type for p in deltas.parameters()} == {"cpu"}


def test_hooks_of_others_are_not_passed_over() -> None:
    class Other(AttentionHook):
        seen = 0

        def scores(self, layer: int, scores: Tensor) -> Tensor:
            self.seen += 1
            return scores

    q, k, v, mask = tensors()
    other = Other()
    with attention_hooks(other), attention_hooks(lean(ATTN_LRP)):
        attention(Module().eval(), q, k, v, mask)
    assert other.seen == 1
