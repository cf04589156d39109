"""Attention that is computed again instead of kept: values and both derivatives, against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limelight.relevance.lean_attention import lean_attention, pieces_of

LOW = torch.finfo(torch.float64).min


def causal(batch: int = 1, queries: int = 9, keys: int = 9, window: int | None = None) -> Tensor:
    at = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    hidden = (at < 0) | ((at >= window) if window else torch.zeros_like(at, dtype=torch.bool))
    return torch.zeros(keys).to(torch.float64).repeat(queries, 1).masked_fill(hidden, LOW).repeat(batch, 1, 1, 1)


def padded() -> Tensor:
    """The second row begins with two positions of padding, whose own queries see nothing."""
    mask = causal(2)
    mask[1, :, :, :2] = LOW
    return mask


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.transpose(2, 3) * scale
    return torch.softmax(scores if mask is None else scores + mask, dim=-1) @ v


def tensors(queries: int = 9, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    sizes = ((queries, 4), (9, 4), (9, 3))
    q, k, v = (torch.randn(batch, 2, n, d, dtype=torch.float64, requires_grad=True) for n, d in sizes)
    return q, k, v


MASKS = {
    "causal": causal(),
    "window": causal(window=3),
    "padded": padded(),
    "two-way": torch.zeros(1, 1, 9, 9, dtype=torch.float64),
    "keys alone": causal(2)[:, :, 6:7],
    "none": None,
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


@masks
@pytest.mark.parametrize("block", [1, 4, 64])
def test_value_and_first_gradient(mask: Tensor | None, block: int) -> None:
    q, k, v = tensors()
    weight = torch.randn(2, 2, 9, 3, dtype=torch.float64)
    got, want = lean_attention(q, k, v, mask, 0.5, block), plain(q, k, v, mask, 0.5)
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(lean_attention(q, k, v, mask, 0.5, block), want, atol=1e-13, rtol=0)
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@masks
@pytest.mark.parametrize("last_only", [False, True])
def test_gradient_of_a_gradient(mask: Tensor | None, last_only: bool) -> None:
    """Through every door: q, k, v and what comes from above, which may be nothing at all but for the last query."""
    seen = []
    for function in (lambda *x: lean_attention(*x, 4), plain):
        q, k, v = tensors()
        weight = torch.randn(2, 2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        if last_only:
            weight[:, :, :-1] = 0
        weight.requires_grad_(True)
        first = torch.autograd.grad((function(q, k, v, mask, 0.5) * weight).sum(), (q, k, v), create_graph=True)
        loss = sum((g * g).sin().sum() for g in first) + function(q, k, v, mask, 0.5).cos()[:, :, -1].sum()
        seen.append(torch.autograd.grad(loss, (q, k, v, weight)))
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_fewer_queries_than_keys() -> None:
    q, k, v = tensors(queries=4)
    mask = causal(queries=4)
    torch.testing.assert_close(lean_attention(q, k, v, mask, 1.0, 3), plain(q, k, v, mask, 1.0), atol=1e-13, rtol=0)


def test_numerical_derivatives() -> None:
    q, k, v = tensors(batch=1)

    def function(*x: Tensor) -> Tensor:
        return lean_attention(*x, causal(), 0.5, 4)

    assert torch.autograd.gradcheck(function, (q, k, v))
    assert torch.autograd.gradgradcheck(function, (q, k, v))


def test_blocks_leave_out_what_no_query_sees() -> None:
    assert pieces_of(causal(), 9, 9, 4) == ((0, 4, 0, 4), (4, 8, 0, 8), (8, 9, 0, 9))
    assert pieces_of(causal(window=3), 9, 9, 4) == ((0, 4, 0, 4), (4, 8, 2, 8), (8, 9, 6, 9))
    assert pieces_of(padded(), 9, 9, 4)[0] == (0, 4, 0, 9)  # a query of padding: everything, as softmax has it
    assert pieces_of(None, 9, 9, 8) == ((0, 8, 0, 9), (8, 9, 0, 9))


def test_nothing_of_the_size_of_the_weights_is_kept() -> None:
    q, k, v = tensors(batch=1)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = lean_attention(q, k, v, None, 0.5, 4)
        torch.autograd.grad(out.sum(), (q, k, v), create_graph=True)
    assert kept
    assert max(kept) <= q.numel() < 2 * 9 * 9
