"""Offsets applied for the current query only (cache scope), as low-rank factors or as dense tensors with Adam.

The gradient with respect to the offsets of one token is a sum of outer products, one per row of the dual batch:

    dL/d(dK) = sum_r  g_r  (x) q_r        g = dL/d(raw scores) [T],  q [d]
    dL/d(dV) = sum_r  A_r  (x) h_r        A = weights [T],           h = dL/d(out) [d]

so a step along it need not be materialised; a sign step (such as an early Adam step) must be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limelight.errors import HookError, SettingError

Group = int | Mapping[int, int]  # query heads per key/value head, for all layers or by layer


def group_of(group: Group, layer: int) -> int:
    return group if isinstance(group, int) else group[layer]


@dataclass(frozen=True)
class Tap:
    """One layer's attention tensors for the current token: shapes ``[B, Hkv, R, T | d]``, R = (1 + C) x heads per group."""

    layer: int
    raw: Tensor
    weights: Tensor
    queries: Tensor
    out: Tensor


@dataclass(frozen=True)
class Gradient:
    """Factors of the gradient of one layer's offsets."""

    scores: Tensor
    queries: Tensor
    weights: Tensor
    out: Tensor


def same_head(rows: int, other: int, group: int, device: torch.device) -> Tensor:
    """Return ``[rows, other]``: 1 where two dual rows belong to the same query head (rows are ordered channel, head)."""
    a = torch.arange(rows, device=device) % group
    b = torch.arange(other, device=device) % group
    return (a[:, None] == b[None, :]).float()


@dataclass
class LowRankOffsets:
    """Offsets updated by steps of a given root-mean-square size along the gradient, stored as factors.

    Args:
        lr: root mean square of an update's entries, over all layers, keys and values (so that it can be compared with
            a sign step of the same ``lr``).
        group: query heads per key/value head.
        positions: number of real positions per row ``[B]``, used for normalisation (padding must not lengthen a row's
            step); by layer where some attend to cross-attention states.
        per_kv_head: one offset per key/value head instead of one per query head.
    """

    lr: float
    group: Group
    positions: Tensor | Mapping[int, Tensor]
    per_kv_head: bool = False
    factors: dict[int, list[tuple[Tensor, Gradient]]] = field(default_factory=dict)

    def _mask(self, layer: int, a: Tensor, b: Tensor) -> Tensor | float:
        group = group_of(self.group, layer)
        if self.per_kv_head or group == 1:
            return 1.0
        return same_head(a.shape[-2], b.shape[-2], group, a.device).to(a.dtype)

    def scores(self, layer: int, q: Tensor) -> Tensor | None:
        return self._along(layer, q, lambda g: (g.queries, g.scores))

    def out(self, layer: int, weights: Tensor) -> Tensor | None:
        return self._along(layer, weights, lambda g: (g.weights, g.out))

    def _along(self, layer: int, x: Tensor, factors: Callable[[Gradient], tuple[Tensor, Tensor]]) -> Tensor | None:
        """Return the sum over updates of ``step x left^T right`` for x ``[B, Hkv, R, n]``; None without any."""
        total: Tensor | None = None
        for step, g in self.factors.get(layer, ()):
            left, right = factors(g)
            inner = torch.matmul(x.to(left.dtype), left.transpose(-1, -2)) * self._mask(layer, x, left)
            term = torch.matmul(inner * step, right)
            total = term if total is None else total + term
        return total

    def update(self, gradients: dict[int, Gradient]) -> None:
        """Apply one step; each batch row is normalised separately."""
        square: Tensor | None = None
        entries: Tensor | None = None
        for layer, g in gradients.items():
            heads = 1 if self.per_kv_head else group_of(self.group, layer)
            for left, right in ((g.scores, g.queries), (g.weights, g.out)):
                gram = torch.matmul(left, left.transpose(-1, -2)) * torch.matmul(right, right.transpose(-1, -2))
                part = (gram * self._mask(layer, left, left)).sum((1, 2, 3))
                square = part if square is None else square + part.to(square.device)
                positions = self.positions if isinstance(self.positions, Tensor) else self.positions[layer]
                count = positions * (left.shape[1] * heads * right.shape[-1])
                entries = count if entries is None else entries + count
        if square is None or entries is None:
            raise SettingError("no layer has offsets", hint="choose at least one layer")
        size = entries.to(square).sqrt() / square.sqrt()
        step = -self.lr * torch.where(square > 0, size, torch.zeros_like(size))
        for layer, g in gradients.items():
            self.factors.setdefault(layer, []).append((step[:, None, None, None].to(g.scores), g))


@dataclass
class DenseOffsets:
    """Offsets as dense tensors ``[B, heads, T, d]`` with Adam (betas 0.9, 0.999): the paper's optimiser, in cache scope."""

    lr: float
    group: Group
    per_kv_head: bool = False
    eps: float = 1e-8
    steps: int = 0
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    moments: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def _split(self, layer: int, x: Tensor) -> Tensor:
        """Reshape ``[B, Hkv, (C', G), n]`` -> ``[B, Hkv, G, C', n]`` (or G = 1 with all rows, per kv head)."""
        b, kv, rows, n = x.shape
        if self.per_kv_head:
            return x[:, :, None]
        group = group_of(self.group, layer)
        return x.reshape(b, kv, rows // group, group, n).transpose(2, 3)

    def _join(self, x: Tensor) -> Tensor:
        b, kv, _, _, n = x.shape
        return x.reshape(b, kv, -1, n) if self.per_kv_head else x.transpose(2, 3).reshape(b, kv, -1, n)

    def scores(self, layer: int, q: Tensor) -> Tensor | None:
        delta = self.keys.get(layer)
        if delta is None:
            return None
        return self._join(torch.matmul(self._split(layer, q.to(delta.dtype)), delta.transpose(-1, -2)))

    def out(self, layer: int, weights: Tensor) -> Tensor | None:
        delta = self.values.get(layer)
        return None if delta is None else self._join(torch.matmul(self._split(layer, weights.to(delta.dtype)), delta))

    def update(self, gradients: dict[int, Gradient]) -> None:
        self.steps += 1
        for layer, g in gradients.items():
            scores, queries, weights, out = (self._split(layer, x) for x in (g.scores, g.queries, g.weights, g.out))
            key, value = torch.matmul(scores.mT, queries), torch.matmul(weights.mT, out)  # [B, Hkv, G, T, d]
            for name, store, gradient in (("k", self.keys, key), ("v", self.values, value)):
                move = -self.lr * self._adam((name, layer), gradient)
                store[layer] = move if layer not in store else store[layer] + move

    def _adam(self, key: tuple[str, int], gradient: Tensor) -> Tensor:
        if key not in self.moments:
            self.moments[key] = (torch.zeros_like(gradient), torch.zeros_like(gradient))
        m, v = self.moments[key]
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient * gradient
        self.moments[key] = (m, v)
        return (m / (1 - 0.9**self.steps)) / ((v / (1 - 0.999**self.steps)).sqrt() + self.eps)


def gradients_of(loss: Tensor, taps: list[Tap]) -> dict[int, Gradient]:
    """Run one reverse pass over the one-token graph and return the gradient factors of every tapped layer."""
    leaves = [t.raw for t in taps] + [t.out for t in taps]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    if all(g is None for g in found):
        raise HookError(
            "the objective does not depend on any layer's scores or outputs, so an update would have no effect",
            hint="a no_grad block or detached outputs inside the model cut the graph; please report this family",
        )
    grads = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    half = len(taps)
    out: dict[int, Gradient] = {}
    for i, t in enumerate(taps):
        wide = torch.promote_types(t.raw.dtype, torch.float32)
        rows = t.raw.shape[2]
        out[t.layer] = Gradient(
            grads[i].detach().to(wide),
            t.queries.detach().to(wide),
            t.weights.detach().to(wide),
            grads[half + i][:, :, : t.weights.shape[2]].detach().to(wide),
        )
        if rows != t.queries.shape[2]:
            raise SettingError(f"expected {t.queries.shape[2]} score rows, got {rows}", hint="please report this")
    return out
