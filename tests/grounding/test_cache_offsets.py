"""Offsets as factors equal the tensors they stand for; steps have the size and direction they say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import SettingError
from limelight.grounding.cache_offsets import DenseOffsets, Gradient, LowRankOffsets, Tap, gradients_of, same_head
from limelight.models.runtime.attention import AttentionCall
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.layers.attention import DualAttention
from limelight.relevance.mode import Mode

B, KV, CHANNELS, T, D, WIDTH = 2, 2, 3, 7, 5, 4
LAYERS = (0, 3)
groups = pytest.mark.parametrize("group", [1, 3])
sharing = pytest.mark.parametrize("per_kv", [False, True], ids=["query heads", "kv heads"])


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed: int, group: int) -> Gradient:
    rows = CHANNELS * group
    return Gradient(
        noise(seed, B, KV, rows, T), noise(seed + 1, B, KV, rows, D), noise(seed + 2, B, KV, rows, T).softmax(-1),
        noise(seed + 3, B, KV, rows, WIDTH),
    )  # fmt: skip


def materialised(left: Tensor, right: Tensor, group: int, per_kv: bool) -> Tensor:
    """``[B, KV, heads a kv head, T, d]``: row r belongs to query head r % group; a kv head's offset takes all rows."""
    out = torch.zeros(*left.shape[:2], 1 if per_kv else group, left.shape[-1], right.shape[-1], dtype=left.dtype)
    for r in range(left.shape[2]):
        out[:, :, 0 if per_kv else r % group] += left[:, :, r, :, None] * right[:, :, r, None, :]
    return out


def seen(dense: Tensor, rows: Tensor, group: int, transpose: bool) -> Tensor:
    """What rows ``[B, KV, R, n]`` see of a dense offset: ``q dK^T`` or ``A dV``, one row at a time."""
    out = []
    for r in range(rows.shape[2]):
        offset = dense[:, :, r % group if dense.shape[2] > 1 else 0]
        out.append((rows[:, :, r, None] @ (offset.mT if transpose else offset))[:, :, 0])
    return torch.stack(out, dim=2)


@groups
@sharing
def test_low_rank_equals_its_materialised_form(group: int, per_kv: bool) -> None:
    lr, positions = 0.3, torch.tensor([T, T - 2])
    offsets = LowRankOffsets(lr, group, positions, per_kv)
    dense = {(kind, n): torch.zeros(1, dtype=torch.float64) for kind in "kv" for n in LAYERS}
    for update in range(3):
        gradients = {n: drawn(10 * update + 100 * n, group) for n in LAYERS}
        full = {("k", n): materialised(g.scores, g.queries, group, per_kv) for n, g in gradients.items()}
        full |= {("v", n): materialised(g.weights, g.out, group, per_kv) for n, g in gradients.items()}
        for row in range(B):
            norm = sum(float(f[row].pow(2).sum()) for f in full.values()) ** 0.5
            entries = sum(f[row].numel() // T * int(positions[row]) for f in full.values())
            for key, f in full.items():
                step = torch.zeros_like(f)
                step[row] = -lr * f[row] / norm * entries**0.5
                dense[key] = dense[key] + step
        offsets.update(gradients)
        for rows in (group, CHANNELS * group):  # block 0 alone, or with its tangents
            for n in LAYERS:
                q, a = noise(77, B, KV, rows, D), noise(78, B, KV, rows, T)
                got = offsets.scores(n, q), offsets.out(n, a)
                assert got[0] is not None and got[1] is not None
                torch.testing.assert_close(got[0], seen(dense["k", n], q, group, True), atol=1e-11, rtol=0)
                torch.testing.assert_close(got[1], seen(dense["v", n], a, group, False), atol=1e-11, rtol=0)
    assert offsets.scores(1, noise(1, B, KV, group, D)) is None
    assert offsets.out(1, noise(1, B, KV, group, T)) is None


@groups
@sharing
def test_a_normalised_step_has_the_root_mean_square_of_its_lr(group: int, per_kv: bool) -> None:
    offsets = LowRankOffsets(0.02, group, torch.full((B,), T), per_kv)
    gradients = {n: drawn(50 * n, group) for n in LAYERS}
    offsets.update(gradients)
    eye_d, eye_t = (torch.eye(n, dtype=torch.float64) for n in (D, T))
    squares, entries = torch.zeros(B, dtype=torch.float64), 0
    for n in LAYERS:
        for head in range(1 if per_kv else group):
            q = torch.zeros(B, KV, group * D, D, dtype=torch.float64)  # unit queries of one head read the offset out
            q[:, :, head::group] = eye_d
            a = torch.zeros(B, KV, group * T, T, dtype=torch.float64)
            a[:, :, head::group] = eye_t
            for read, width in ((offsets.scores(n, q), D), (offsets.out(n, a), T)):
                assert read is not None
                squares += read[:, :, head::group].pow(2).sum((1, 2, 3))
                entries += KV * width * read.shape[-1]
    torch.testing.assert_close((squares / entries).sqrt(), torch.full((B,), 0.02, dtype=torch.float64))


def test_padding_does_not_lengthen_a_step() -> None:
    """A row padded to T has the step it has alone."""
    group, real = 2, 4
    g = drawn(0, group)
    left = torch.zeros(T, dtype=torch.float64)
    left[T - real :] = 1
    padded = Gradient(g.scores * left, g.queries, g.weights * left, g.out)
    alone = Gradient(g.scores[..., T - real :], g.queries, g.weights[..., T - real :], g.out)
    long, short = (LowRankOffsets(0.1, group, torch.full((B,), real)) for _ in range(2))
    long.update({0: padded})
    short.update({0: alone})
    q = noise(9, B, KV, group, D)
    a, b = long.scores(0, q), short.scores(0, q)
    assert a is not None and b is not None
    torch.testing.assert_close(a[..., T - real :], b, atol=1e-13, rtol=0)
    assert not a[..., : T - real].any()


def test_a_gradient_of_zero_makes_no_step() -> None:
    for dtype in (torch.float32, torch.float64):
        zero = Gradient(*(torch.zeros(B, KV, 3, n, dtype=dtype) for n in (T, D, T, WIDTH)))
        low, dense = LowRankOffsets(0.1, 1, torch.full((B,), T)), DenseOffsets(0.1, 1)
        for offsets in (low, dense):
            offsets.update({0: zero})
            out = offsets.scores(0, torch.ones(B, KV, 3, D, dtype=dtype))
            assert out is not None and not out.any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_normalised_step_does_not_depend_on_the_size_of_the_gradient(scale: float) -> None:
    g = drawn(0, 1)
    narrow = Gradient(*(x.float() for x in (g.scores, g.queries, g.weights, g.out)))
    scaled = Gradient(narrow.scores * scale, narrow.queries, narrow.weights, narrow.out * scale)
    a, b = (LowRankOffsets(0.1, 1, torch.full((B,), T)) for _ in range(2))
    a.update({0: narrow})
    b.update({0: scaled})
    q = noise(9, B, KV, 1, D).float()
    torch.testing.assert_close(a.scores(0, q), b.scores(0, q), rtol=1e-4, atol=1e-6)


@groups
@sharing
def test_dense_offsets_are_adams(group: int, per_kv: bool) -> None:
    ours = DenseOffsets(0.05, group, per_kv)
    heads = 1 if per_kv else group
    leaves = {(k, n): torch.zeros(B, KV, heads, T, d, dtype=torch.float64, requires_grad=True)
              for k, d in (("k", D), ("v", WIDTH)) for n in LAYERS}  # fmt: skip
    adam = torch.optim.Adam(leaves.values(), lr=0.05)
    for update in range(4):
        gradients = {n: drawn(10 * update + 100 * n, group) for n in LAYERS}
        for n, g in gradients.items():
            leaves["k", n].grad = materialised(g.scores, g.queries, group, per_kv)
            leaves["v", n].grad = materialised(g.weights, g.out, group, per_kv)
        adam.step()
        ours.update(gradients)
    for n in LAYERS:
        torch.testing.assert_close(ours.keys[n], leaves["k", n].detach(), atol=1e-13, rtol=0)
        torch.testing.assert_close(ours.values[n], leaves["v", n].detach(), atol=1e-13, rtol=0)
        for rows in (group, CHANNELS * group):
            q, a = noise(77, B, KV, rows, D), noise(78, B, KV, rows, T)
            torch.testing.assert_close(ours.scores(n, q), seen(ours.keys[n], q, group, True), atol=1e-12, rtol=0)
            torch.testing.assert_close(ours.out(n, a), seen(ours.values[n], a, group, False), atol=1e-12, rtol=0)
    assert ours.scores(1, noise(1, B, KV, group, D)) is None


def test_offsets_of_a_bfloat16_model_are_float32() -> None:
    g = drawn(0, 1)
    narrow = Gradient(*(x.float() for x in (g.scores, g.queries, g.weights, g.out)))
    for offsets in (LowRankOffsets(1e-4, 1, torch.full((B,), T)), DenseOffsets(1e-4, 1)):
        offsets.update({0: narrow})
        out = offsets.scores(0, noise(5, B, KV, 1, D).bfloat16())
        assert out is not None and out.dtype == torch.float32


def test_same_head() -> None:
    assert same_head(4, 2, 2, torch.device("cpu")).tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


def test_no_layer_is_an_error() -> None:
    with pytest.raises(SettingError, match="no layer") as caught:
        LowRankOffsets(0.1, 1, torch.tensor([T])).update({})
    assert caught.value.hint


@dataclass
class Leaves:
    """Dense offsets that autograd differentiates directly. ``[B, KV, heads a kv head, T, d]``."""

    keys: Tensor
    values: Tensor
    group: int

    def scores(self, layer: int, q: Tensor) -> Tensor:
        return seen(self.keys, q, self.group, True)

    def out(self, layer: int, weights: Tensor) -> Tensor:
        return seen(self.values, weights, self.group, False)


@groups
@sharing
@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
@pytest.mark.parametrize("graph", ["surrogate", "true"])
@pytest.mark.parametrize("size", [0.0, 0.4])
def test_factors_are_the_gradient(group: int, per_kv: bool, composite: Composite, graph: str, size: float) -> None:
    """Of any loss of value and tangents, at zero offsets and elsewhere."""
    rows, heads = CHANNELS * B, KV * group
    cache = DualCache(T)
    cache.write(2, noise(0, rows, KV, T - 1, D), noise(1, rows, KV, T - 1, WIDTH))
    cache.advance(T - 1)
    own = 1 if per_kv else group
    leaves = Leaves(
        (noise(5, B, KV, own, T, D) * size).requires_grad_(True),
        (noise(6, B, KV, own, T, WIDTH) * size).requires_grad_(True), group,
    )  # fmt: skip
    taps: list[Tap] = []
    mode = Mode(batch=B, graph=graph, write=False, offsets=leaves, tap=lambda *seen: taps.append(Tap(*seen)))
    module = nn.Module()
    new = [noise(i, rows, h, 1, d).requires_grad_(True) for i, h, d in ((2, heads, D), (3, KV, D), (4, KV, WIDTH))]
    mask = torch.zeros(B, 1, 1, T, dtype=torch.float64)
    mask[1, ..., :2] = torch.finfo(torch.float64).min
    out, _ = DualAttention(mode, cache, composite.attention).attend(
        AttentionCall(module, 2, *new, mask, 0.5, None, None)
    )
    loss = (out * noise(7, *out.shape)).sum() + (out.pow(2) * noise(8, *out.shape)).sum()
    want = torch.autograd.grad(loss, [leaves.keys, leaves.values], retain_graph=True)
    (found,) = gradients_of(loss, taps).items()
    assert found[0] == 2
    g = found[1]
    torch.testing.assert_close(materialised(g.scores, g.queries, group, per_kv), want[0], atol=1e-11, rtol=0)
    torch.testing.assert_close(materialised(g.weights, g.out, group, per_kv), want[1], atol=1e-11, rtol=0)
    assert not any(t.requires_grad for t in (g.scores, g.queries, g.weights, g.out))
