"""Attention in forward mode against the adjoint of the rules: <g, out'> = <(rules' gradient of <g, out>), (q', k', v')>."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnsupportedError
from limelight.grounding.cache_offsets import DenseOffsets
from limelight.models.runtime.attention import AttentionCall, attention, attention_hooks
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.layers.attention import AttentionRule, DualAttention
from limelight.relevance.mode import NEAR_ZERO, Mode, block_rows, blocks
from limelight.relevance.rules import EPS

B, HEADS, KV, D, WIDTH, PREFIX, NEW, CHANNELS = 2, 4, 2, 6, 5, 7, 4, 3  # CHANNELS counts block 0


@dataclass
class Case:
    softcap: float | None = None
    sinks: bool = False
    masked: bool = True


CASES = {
    "plain": Case(), "no mask": Case(masked=False), "softcap": Case(softcap=3.0), "sinks": Case(sinks=True),
    "both": Case(3.0, True),
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
MASKED = {name: case for name, case in CASES.items() if case.masked}  # without a mask a query sees the future
masked_cases = pytest.mark.parametrize("case", MASKED.values(), ids=MASKED)
both = pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Inputs:
    """Blocks ``[CHANNELS, B, heads, T, d]``: values first, then tangents. q covers the last NEW positions."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor
    sinks: Tensor
    module: nn.Module

    @classmethod
    def drawn(cls) -> Inputs:
        total = PREFIX + NEW
        mask = torch.zeros(B, 1, NEW, total, dtype=torch.float64)
        future = torch.ones(NEW, total).triu(PREFIX + 1).bool()
        mask.masked_fill_(future, torch.finfo(torch.float64).min)
        mask[1, :, :, :2] = torch.finfo(torch.float64).min  # left padding
        module = nn.Module()
        module.layer_idx = 3  # type: ignore[assignment]
        return cls(
            noise(0, CHANNELS, B, HEADS, NEW, D), noise(1, CHANNELS, B, KV, total, D),
            noise(2, CHANNELS, B, KV, total, WIDTH), mask, noise(3, HEADS), module,
        )  # fmt: skip


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[2:])


def forward_mode(
    x: Inputs, case: Case, composite: Composite, mode: Mode, one_by_one: bool = False
) -> tuple[Tensor, DualCache]:
    """``[CHANNELS, B, NEW, H, WIDTH]``: the prefix from the cache, new positions at once or one by one."""
    cache = DualCache(PREFIX)
    cache.write(3, rows(x.k[:, :, :, :PREFIX]), rows(x.v[:, :, :, :PREFIX]))
    cache.advance(PREFIX)
    hook = DualAttention(mode, cache, composite.attention)
    steps = [(i, i + 1) for i in range(NEW)] if one_by_one else [(0, NEW)]
    outs = []
    for start, stop in steps:
        k, v = (y[:, :, :, PREFIX + start : PREFIX + stop] for y in (x.k, x.v))
        mask = x.mask[:, :, start:stop, : PREFIX + stop] if case.masked else None
        call = AttentionCall(
            x.module, 3, rows(x.q[:, :, :, start:stop]), rows(k), rows(v), mask, 0.4, case.softcap,
            x.sinks if case.sinks else None,
        )  # fmt: skip
        outs.append(hook.attend(call)[0])
        if mode.write:
            cache.advance(stop - start)
    return blocks(torch.cat(outs, dim=1), CHANNELS), cache


def under_rules(x: Inputs, case: Case, composite: Composite) -> tuple[Tensor, list[Tensor]]:
    """The library's attention under the composite's attention rule, and its leaves q, k, v."""
    leaves = [y[0].clone().requires_grad_(True) for y in (x.q, x.k, x.v)]
    with attention_hooks(AttentionRule(composite.attention)):
        out, _ = attention(
            x.module, *leaves, x.mask if case.masked else None, 0.4, softcap=case.softcap,
            s_aux=x.sinks if case.sinks else None,
        )  # fmt: skip
    return out, leaves


def adjoint(x: Inputs, case: Case, composite: Composite, g: Tensor) -> Tensor:
    """``<J^T g, (q', k', v')>`` of every channel."""
    out, leaves = under_rules(x, case, composite)
    grads = torch.autograd.grad((g * out).sum(), leaves, allow_unused=True, materialize_grads=True)
    parts = [[(grad * y[c]).sum() for grad, y in zip(grads, (x.q, x.k, x.v), strict=True)] for c in range(1, CHANNELS)]
    return torch.stack([torch.stack(p).sum() for p in parts])


@cases
@both
@pytest.mark.parametrize("block", [1, 3, 64])
def test_values_and_tangents(case: Case, composite: Composite, block: int) -> None:
    x = Inputs.drawn()
    if not case.masked:  # without a mask every query sees everything: one query at a time cannot
        x.mask.zero_()
    out, cache = forward_mode(x, case, composite, Mode(batch=B, block=block))
    want, _ = under_rules(x, case, composite)
    torch.testing.assert_close(out[0], want, atol=1e-12, rtol=0)
    for seed in (10, 11):
        g = noise(seed, *want.shape)
        got = (g * out[1:]).flatten(1).sum(-1)
        torch.testing.assert_close(got, adjoint(x, case, composite, g), atol=1e-11, rtol=0)
    assert cache.length == PREFIX + NEW


@masked_cases
@both
def test_the_two_ways_through_agree(case: Case, composite: Composite) -> None:
    """In place and with a graph, several at once and one by one, stored and not stored."""
    x = Inputs.drawn()
    quick, cache = forward_mode(x, case, composite, Mode(batch=B))
    single, stepped = forward_mode(x, case, composite, Mode(batch=B), one_by_one=True)
    with_graph, _ = forward_mode(x, case, composite, Mode(batch=B, graph="true"))
    surrogate, _ = forward_mode(x, case, composite, Mode(batch=B, graph="surrogate"))
    unwritten, untouched = forward_mode(x, case, composite, Mode(batch=B, write=False))
    for other in (single, with_graph, surrogate, unwritten):
        torch.testing.assert_close(other, quick, atol=1e-12, rtol=0)
    for a, b in zip(cache.read(3) or (), stepped.read(3) or (), strict=True):
        assert torch.equal(a, b)
    assert untouched.length == PREFIX


@both
def test_block_0_alone_reads_the_values_of_the_cache(composite: Composite) -> None:
    x, case = Inputs.drawn(), Case()
    cache = DualCache(1)
    cache.write(3, rows(x.k[:, :, :, :PREFIX]), rows(x.v[:, :, :, :PREFIX]))
    cache.advance(PREFIX)
    hook = DualAttention(Mode(batch=B, write=False), cache, composite.attention)
    k, v = x.k[0, :, :, PREFIX:], x.v[0, :, :, PREFIX:]
    out, _ = hook.attend(AttentionCall(x.module, 3, x.q[0], k, v, x.mask, 0.4, None, None))
    torch.testing.assert_close(out, under_rules(x, case, composite)[0], atol=1e-12, rtol=0)


@masked_cases
@pytest.mark.parametrize("graph", ["surrogate", "true"])
@both
def test_gradients_of_a_tangent(case: Case, graph: str, composite: Composite) -> None:
    """One query's tangent, differentiated to its q, k, v: through the rules again, or as the value changes."""
    x = Inputs.drawn()
    last = [x.q[:, :, :, -1:], x.k[:, :, :, -1:], x.v[:, :, :, -1:]]
    g = noise(12, B, 1, HEADS, WIDTH)

    def tangent(*new: Tensor) -> tuple[Tensor, Tensor]:
        """<g, value> and <g, tangent of channel 1>."""
        cache = DualCache(1)
        cache.write(3, rows(x.k[:, :, :, :-1]), rows(x.v[:, :, :, :-1]))
        cache.advance(PREFIX + NEW - 1)
        hook = DualAttention(Mode(batch=B, graph=graph, write=False), cache, composite.attention)
        call = AttentionCall(
            x.module, 3, *(rows(y) for y in new), x.mask[:, :, -1:], 0.4, case.softcap,
            x.sinks if case.sinks else None,
        )  # fmt: skip
        out = blocks(hook.attend(call)[0], CHANNELS)
        return (g * out[0]).sum(), (g * out[1]).sum()

    leaves = [y.clone().requires_grad_(True) for y in last]
    value, directional = tangent(*leaves)
    for number, scalar in enumerate((value, directional)):
        got = torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        if graph == "true":
            step = 1e-6
            for i, (leaf, grad) in enumerate(zip(last, got, strict=True)):
                for seed in (20, 21):
                    way = noise(seed + i, *leaf.shape)
                    ends = [
                        tangent(*(y + sign * step * way if j == i else y for j, y in enumerate(last)))[number]
                        for sign in (1, -1)
                    ]
                    assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float((grad * way).sum()), abs=2e-8)
        else:
            want = second_order(x, case, composite, g, number)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a[0], b, atol=1e-11, rtol=0)


def second_order(x: Inputs, case: Case, composite: Composite, g: Tensor, number: int) -> list[Tensor]:
    """Gradient to the last q, k, v of <g, out> (0) or <J^T g, tangents of channel 1> (1): backward through the rules twice."""
    parts = [y[0].clone() for y in (x.q, x.k, x.v)]
    new = [y[:, :, -1:].clone().requires_grad_(True) for y in parts]
    joined = [torch.cat([y[:, :, :-1].requires_grad_(True), n], dim=2) for y, n in zip(parts, new, strict=True)]
    with attention_hooks(AttentionRule(composite.attention)):
        out, _ = attention(x.module, *joined, x.mask, 0.4, softcap=case.softcap, s_aux=x.sinks if case.sinks else None)
    scalar = (g * out[:, -1:]).sum()
    if number:
        grads = torch.autograd.grad(scalar, joined, create_graph=True, allow_unused=True, materialize_grads=True)
        scalar = sum(((grad * y[1]).sum() for grad, y in zip(grads, (x.q, x.k, x.v), strict=True)), torch.zeros(()))
    return list(torch.autograd.grad(scalar, new, allow_unused=True, materialize_grads=True))


@masked_cases
@both
@pytest.mark.parametrize("graph", ["true", "surrogate", "none"])
def test_offsets_on_sixteen_bit_keys(case: Case, composite: Composite, graph: str) -> None:
    """Offsets and their products are float32; what comes out is of the model's type."""
    x = Inputs.drawn()
    offsets = DenseOffsets(1e-2, HEADS // KV)
    offsets.keys[3], offsets.values[3] = (
        noise(s, B, KV, HEADS // KV, PREFIX + NEW, d).float() for s, d in ((7, D), (8, WIDTH))
    )
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        cache = DualCache(1)
        cache.write(3, rows(x.k[:, :, :, :-1]).to(dtype), rows(x.v[:, :, :, :-1]).to(dtype))
        cache.advance(PREFIX + NEW - 1)
        hook = DualAttention(Mode(batch=B, graph=graph, write=False, offsets=offsets), cache, composite.attention)
        mask = x.mask[:, :, -1:].clamp_min(torch.finfo(dtype).min).to(dtype)
        last = (rows(y[:, :, :, -1:]).to(dtype) for y in (x.q, x.k, x.v))
        sinks = x.sinks.to(dtype) if case.sinks else None
        found.append(hook.attend(AttentionCall(x.module, 3, *last, mask, 0.4, case.softcap, sinks))[0])
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found[0].double(), found[1], atol=0.03 * float(found[1].abs().max()), rtol=0)


def test_blocks_of_flattened_rows() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    assert blocks(x, 3).shape == (3, 2, 2)
    assert torch.equal(blocks(x, 3)[1], x[2:4])
    assert block_rows(x, 2) == 3
    with pytest.raises(UnsupportedError, match="4 blocks") as caught:
        blocks(x, 4)
    assert "exact mode" in caught.value.hint


def test_slope_is_not_steered_by_its_stabiliser() -> None:
    """d/dz act(z) / (z + eps) near zero would be 1/eps; elsewhere it is the true one."""
    z = torch.tensor([0.0, -EPS, 1e-9, 0.3, -2.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Mode(graph="true").slope(z, nn.functional.silu(z)).sum(), z)
    assert NEAR_ZERO > 1e-8
    assert gradient[:3].tolist() == [0.0, 0.0, 0.0]
    wanted = torch.sigmoid(z) * (1 - torch.sigmoid(z))  # silu(z) / z = sigmoid(z)
    torch.testing.assert_close(gradient[3:], wanted[3:].detach(), atol=1e-8, rtol=0)
    half = torch.tensor([0.0, 6e-8, 0.5], dtype=torch.float16)
    assert torch.isfinite(Mode(graph="true").slope(half, half / 2)).all()
    assert not Mode(graph="surrogate").slope(z, nn.functional.silu(z)).requires_grad


def test_a_mode_of_its_own_never_reads_the_mask_of_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of one row broadcast; masks of every row are cut to block 0's."""
    x = Inputs.drawn()
    whole = x.mask.repeat(CHANNELS, 1, 1, 1)
    a, _ = forward_mode(x, Case(), ATTN_LRP, Mode(batch=B))
    x.mask = whole
    b, _ = forward_mode(x, Case(), ATTN_LRP, Mode(batch=B))
    assert torch.equal(a, b)
    x.mask = whole[:1]
    c, _ = forward_mode(x, Case(), ATTN_LRP, Mode(batch=B))
    assert torch.equal(a[:, 0], c[:, 0])


def test_a_mask_of_one_row_of_keys_for_all_queries() -> None:
    """Blocks of queries behind the first one, too."""
    x = Inputs.drawn()
    x.mask = x.mask[:, :, -1:]
    short, _ = forward_mode(x, Case(), ATTN_LRP, Mode(batch=B, block=3))
    x.mask = x.mask.expand(-1, -1, NEW, -1)
    whole, _ = forward_mode(x, Case(), ATTN_LRP, Mode(batch=B, block=64))
    torch.testing.assert_close(short, whole, atol=1e-12, rtol=0)
