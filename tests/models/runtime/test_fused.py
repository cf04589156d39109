"""The fused kernel: values and gradients of the eager computation, whatever the mask, and no [T, T] tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import sliding_window_causal_mask_function

from limelight.models.runtime import fused
from limelight.models.runtime.attention import AttentionHook, attention, attention_hooks
from limelight.models.runtime.fused import additive_mask, fused_attention

LOW = torch.finfo(torch.float64).min


class Module(nn.Module):
    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.layer_idx, self.is_causal = 0, causal


def tensors(
    heads: int = 4, kv: int = 2, width: int = 6, values: int = 6, batch: int = 2, keys: int = 9
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads + kv + width + values)
    sizes = ((heads, 9, width), (kv, keys, width), (kv, keys, values))
    return [torch.randn(batch, *s, dtype=torch.float64, generator=generator, requires_grad=True) for s in sizes]


def masks() -> dict[str, Tensor | None]:
    causal = torch.full((2, 1, 9, 9), LOW, dtype=torch.float64).triu(1)
    padded = causal.clone()
    padded[1, :, :, :3] = LOW  # queries of the padding see nothing at all
    prefix = causal.clone()
    prefix[..., :4] = 0
    at = torch.arange(9)
    window = causal.masked_fill((at[:, None] - at) >= 3, LOW)
    chunked = causal.masked_fill(at[:, None] // 4 != at // 4, LOW)
    return {"causal": causal, "padded": padded, "prefix": prefix, "window": window, "chunked": chunked, "none": None}


SHAPES: dict[str, dict[str, int]] = {
    "grouped": {}, "one key head": {"kv": 1}, "own keys": {"kv": 4}, "narrow values": {"values": 3},
    "wide values": {"values": 8}, "own, narrow": {"kv": 4, "values": 2},
}  # fmt: skip


def agree(got: Tensor, want: Tensor, leaves: list[Tensor], blind: Tensor | None = None) -> None:
    """Values and gradients; ``blind`` queries [B, Q, 1, 1] see nothing, so that their own gradient is nobody's."""
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)
    weight = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    if blind is not None:
        values = (torch.autograd.grad((x * weight).sum(), leaves[2], retain_graph=True)[0] for x in (got, want))
        torch.testing.assert_close(*values, atol=1e-12, rtol=0)
        weight = weight.masked_fill(blind, 0.0)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), leaves) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_eager_computation(kind: str, shape: dict[str, int]) -> None:
    leaves, mask, module = tensors(**shape), masks()[kind], Module(causal=False).eval()
    want, weights = attention(module, *leaves, mask, scaling=0.4)
    assert weights is not None
    with fused_attention():
        got, none = attention(module, *leaves, mask, scaling=0.4)
    assert none is None
    blind = torch.zeros(2, 9, 1, 1, dtype=torch.bool)
    blind[1, :3] = kind == "padded"
    agree(got, want, leaves, blind)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_causal_mask_that_was_left_out(shape: dict[str, int]) -> None:
    leaves, module = tensors(**shape), Module().eval()
    want = attention(module, *leaves, masks()["causal"], scaling=0.4)[0]
    with fused_attention():
        assert additive_mask(2, 9, 9, dtype=torch.float64) is None
        agree(attention(module, *leaves, None, scaling=0.4)[0], want, leaves)
        cross = tensors(keys=7)  # attends to something else: nothing of it was left out
        free = attention(module, *cross, None, scaling=0.4)[0]
        two_way = attention(module, *leaves, None, scaling=0.4, is_causal=False)[0]
    agree(free, attention(module, *cross, None, scaling=0.4)[0], cross)
    agree(two_way, attention(module, *leaves, None, scaling=0.4)[0], leaves)


class Scores(AttentionHook):
    def scores(self, layer: int, scores: Tensor) -> Tensor:
        return scores * 2


class Weights(AttentionHook):
    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        return out + weights.sum(-1, keepdim=True)


class Asked(AttentionHook):
    """Is asked to attend, and looks at the mask it is given."""

    def attend(self, call: Any) -> None:
        assert call.mask is not None
        assert bool((call.mask[..., 0, 1:] == LOW).all())


NEEDS: dict[str, tuple[list[AttentionHook], dict[str, Any]]] = {
    "scores": ([Scores()], {}), "weights": ([Weights()], {}), "cap": ([], {"softcap": 2.0}),
    "sinks": ([], {"s_aux": torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)}),
    "indices": ([], {"indices": torch.arange(9).expand(2, 9, 9)[..., ::2]}), "asked": ([Asked()], {}),
}  # fmt: skip


@pytest.mark.parametrize("need", NEEDS)
def test_layers_that_need_scores_compute_as_usual_under_a_mask_that_was_left_out(need: str) -> None:
    leaves, module = tensors(), Module().eval()
    hooks, further = NEEDS[need]
    with attention_hooks(*hooks):
        want = attention(module, *leaves, masks()["causal"], scaling=0.4, **further)
        with fused_attention():
            additive_mask(2, 9, 9, dtype=torch.float64)
            got = attention(module, *leaves, None, scaling=0.4, **further)
    agree(got[0], want[0], leaves)
    assert (got[1] is None) == (need in ("indices", "asked"))


def test_hooks_see_the_output_either_way() -> None:
    seen: list[Tensor] = []

    class See(AttentionHook):
        def attended(self, layer: int, out: Tensor) -> None:
            seen.append(out.detach())

    leaves, mask = tensors(), masks()["causal"]
    with attention_hooks(See()):
        attention(Module().eval(), *leaves, mask)
        with fused_attention():
            attention(Module().eval(), *leaves, mask)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-13, rtol=0)


def test_masks_are_omitted_only_where_causality_suffices() -> None:
    real = torch.ones(2, 9, dtype=torch.bool)
    padded = real.clone()
    padded[0, :2] = False
    window = {"mask_function": sliding_window_causal_mask_function(4), "local_size": 4}
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"attention_mask": real}, True), ({}, True), ({"attention_mask": padded}, False),
        (window, False), (window | {"local_size": 10, "mask_function": sliding_window_causal_mask_function(10)}, True),
        ({"allow_is_causal_skip": False}, False),
    ]  # fmt: skip
    for given, skipped in cases:
        want = additive_mask(2, 9, 9, dtype=torch.float64, **given)
        with fused_attention():
            got = additive_mask(2, 9, 9, dtype=torch.float64, **given)
            state = fused.fused_state()
        assert state is not None
        assert state.skipped is (got is None) is skipped
        if got is not None:
            assert want is not None
            assert torch.equal(got, want)
    assert fused.fused_state() is None


def test_a_mask_of_another_dtype_masks_as_much() -> None:
    q, k, v = (x.detach().float() for x in tensors())
    with fused_attention():
        got = attention(Module().eval(), q, k, v, masks()["padded"])[0]
    want = attention(Module().eval(), q.double(), k.double(), v.double(), masks()["padded"])[0]
    assert bool(torch.isfinite(got).all())
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
