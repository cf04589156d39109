"""Offsets as a hook: the same as adding them to K and V, in float32 whatever the model's dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from limelight.grounding.deltas import Deltas
from limelight.models.runtime.attention import attention, attention_hooks, repeat_heads


class Module(nn.Module):
    num_key_value_groups, layer_idx = 2, 1


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, h, 5, 8, dtype=torch.float64).to(dtype) for h in (4, 2, 2))
    mask = torch.full((1, 1, 5, 5), torch.finfo(dtype).min, dtype=dtype).triu(1)
    return q, k, v, mask


def offsets(dtype: torch.dtype = torch.float64, layers: tuple[int, ...] = (1,), size: float = 0.3) -> Deltas:
    deltas = Deltas(layers, dtype)
    for layer in layers:
        deltas.qkv(layer, *[torch.zeros(2, 4, 5, 8)] * 3)
    with torch.no_grad():
        for parameter in deltas.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * size)
    return deltas


def test_they_start_at_zero_and_change_nothing() -> None:
    q, k, v, mask = tensors(torch.float32)
    module = Module().eval()
    plain = attention(module, q, k, v, mask)
    with attention_hooks(Deltas((1,), torch.float32)):
        same = attention(module, q, k, v, mask)
    assert torch.equal(same[0], plain[0])


def test_equal_to_adding_them_to_the_repeated_keys_and_values() -> None:
    q, k, v, mask = tensors()
    deltas = offsets()
    with attention_hooks(deltas):
        got = attention(Module().eval(), q, k, v, mask, scaling=0.4)[0]
    keys = repeat_heads(k, 2) + deltas.keys[1]
    values = repeat_heads(v, 2) + deltas.values[1]
    scores = q @ keys.transpose(2, 3) * 0.4 + mask
    want = (torch.softmax(scores, -1) @ values).transpose(1, 2)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(x.square().sum(), deltas.parameters(), retain_graph=True) for x in (got, want)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_only_their_own_layers() -> None:
    q, k, v, mask = tensors()
    other = Module().eval()
    other.layer_idx = 0
    plain = attention(other, q, k, v, mask)[0]
    with attention_hooks(offsets()):
        assert torch.equal(attention(other, q, k, v, mask)[0], plain)
        assert not torch.allclose(attention(Module().eval(), q, k, v, mask)[0], plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float32_or_better_and_the_output_in_the_models_dtype(dtype: torch.dtype) -> None:
    q, k, v, mask = tensors(dtype)
    deltas = offsets(dtype)
    want = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(p.dtype == want and p.requires_grad for p in deltas.parameters())
    with attention_hooks(deltas):
        out, weights = attention(Module().eval(), q, k, v, mask)
    assert out.dtype == dtype
    assert weights is not None
    assert weights.dtype == dtype


def test_small_offsets_do_not_vanish_in_bfloat16_weights() -> None:
    """1e-3 added to a key of size 4 in bfloat16 is nothing; as a term of its own it moves the scores."""
    q, k, v, mask = tensors(torch.bfloat16)
    k = k * 4
    deltas = offsets(torch.bfloat16, size=1e-3)
    added = repeat_heads(k, 2) + deltas.keys[1].to(torch.bfloat16)
    assert float((added == repeat_heads(k, 2)).float().mean()) > 0.6
    scores = q @ repeat_heads(k, 2).transpose(2, 3)
    moved = deltas.raw_scores(1, scores, q)
    assert moved.dtype == torch.float32
    want = q.float() @ deltas.keys[1].transpose(2, 3)
    torch.testing.assert_close((moved - scores.float()).detach(), want.detach(), atol=1e-5, rtol=1e-2)


def test_order_of_parameters_and_gradients() -> None:
    deltas = offsets(layers=(3, 0))
    assert list(deltas.keys) == [3, 0]
    assert [id(p) for p in deltas.parameters()] == [
        id(p) for p in (deltas.keys[3], deltas.keys[0], deltas.values[3], deltas.values[0])
    ]
    gradients = [torch.full_like(p, float(i)) for i, p in enumerate(deltas.parameters())]
    deltas.set_gradients(gradients)
    assert float(deltas.values[3].grad[0, 0, 0, 0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        deltas.set_gradients(gradients[:2])
