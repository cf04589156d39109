"""Attention over values and tangents (forward-mode AttnLRP), reading the prefix of a :class:`DualCache` in place.

s' = (q' K^T + q K'^T) / 4,  A' = A s' - A sum(A s'),  out' = A' V + A V' / 2      (AttnLRP: divisors 4, 4, 2)
out' = A V'                                                                        (CP-LRP: nothing through q, k)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.attention import AttentionCall, AttentionHook, softmax_with_sinks
from limelight.relevance import rules
from limelight.relevance.composites import Composite, divided
from limelight.relevance.dual_cache import DualCache

FALLBACK = "use exact mode (lime(), attribute()), which needs no forward twin"
NEAR_ZERO = 1e-6  # below it, d/dz of f(z) / (z + 1e-10) is an artefact of the 1e-10


class Offsets(Protocol):
    """Offsets the current query sees (cache scope). Shapes: B rows, Hkv kv heads, G query heads a kv head, Q = 1."""

    def scores(self, layer: int, q: Tensor) -> Tensor | None:
        """``q dK^T`` for q ``[B, Hkv, R, d]`` -> ``[B, Hkv, R, T]`` (R queries: channels x heads a group)."""
        ...

    def out(self, layer: int, weights: Tensor) -> Tensor | None:
        """``A dV`` for weights ``[B, Hkv, R, T]`` -> ``[B, Hkv, R, d]``."""
        ...


@dataclass
class Mode:
    """What one dual forward does. Mutable, because module patches read it.

    Attributes:
        batch: rows of block 0.
        channels: blocks of the present forward, 1 + C (1: the model alone).
        graph: ``none``, ``surrogate`` (constants stay constants and the factors act again on block 0, as in the authors'
            second-order pass) or ``true`` (the gradient of the value).
        write: store the new keys and values as they are computed.
        tap: when set, called with (layer, raw scores, weights, q, out) of the current token.
        block: queries handled at a time in a prefill, so that their scores stay in the processor's cache.
    """

    batch: int = 1
    channels: int = 1
    graph: str = "none"
    write: bool = True
    offsets: Offsets | None = None
    tap: Callable[[int, Tensor, Tensor, Tensor, Tensor], None] | None = None
    block: int = 64

    def const(self, x: Tensor) -> Tensor:
        """A factor of the rules: a constant unless the true gradient is wanted."""
        return x if self.graph == "true" else x.detach()

    def slope(self, z: Tensor, value: Tensor) -> Tensor:
        """``value / (z + eps)``, wide: a constant; in the true graph differentiable, save where only the eps would steer."""
        fixed = rules.slope(z, value)
        if self.graph != "true":
            return fixed
        wide = z.to(fixed.dtype)
        tiny = wide.abs() < NEAR_ZERO
        return torch.where(tiny, fixed, value.to(fixed.dtype) / (wide.masked_fill(tiny, 1.0) + rules.EPS))

    def shared(self, x: Tensor, parts: int) -> Tensor:
        """Block 0's part of a product: its gradient is divided again in the surrogate."""
        return rules.uniform(x, parts) if self.graph == "surrogate" else x


def block_rows(x: Tensor, channels: int) -> int:
    """Rows of one block in ``[(1 + C) * B, ...]``, or in ``[(1 + C) * B * T, D]`` where a layer flattens its input.

    Raises:
        UnsupportedError: the first dimension does not hold the blocks.
    """
    if x.shape[0] % channels:
        raise UnsupportedError(
            f"expected the first dimension of {tuple(x.shape)} to hold {channels} blocks (the model and its tangents)",
            hint=FALLBACK,
        )
    return x.shape[0] // channels


def blocks(x: Tensor, channels: int) -> Tensor:
    """``[(1 + C) * B, ...]`` -> ``[1 + C, B, ...]``."""
    return x.reshape(channels, block_rows(x, channels), *x.shape[1:])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _weighted(weights: Tensor, values: list[Tensor]) -> Tensor:
    """``weights @ values`` over segments of positions."""
    if len(values) == 1:
        return torch.matmul(weights, values[0])
    split = values[0].shape[-2]
    return torch.matmul(weights[..., :split], values[0]) + torch.matmul(weights[..., split:], values[1])


class DualAttention(AttentionHook):
    """Attention over values and tangents, reading the prefix of a :class:`DualCache` in place."""

    def __init__(self, mode: Mode, cache: DualCache, composite: Composite) -> None:
        self.mode, self.cache = mode, cache
        self.divisors = composite.attention
        self.through_scores = composite.attention[0] > 0

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        mode, b = self.mode, self.mode.batch
        q, k, v = call.query, call.key, call.value
        rows, heads, length, dim = q.shape
        channels = rows // b
        kv = k.shape[1]
        group = heads // kv
        if mode.graph == "surrogate":
            q, k, v = (torch.cat([divided(x[:b], n), x[b:]]) for x, n in zip((q, k, v), self.divisors, strict=True))
        if mode.write:
            self.cache.write(call.layer, k, v)
        if mode.write and mode.graph == "none":
            joined = self.cache.read(call.layer, extra=length)
            segments = [joined if joined is not None else (k, v)]
        else:  # the prefix is read in place; only the new position carries a graph
            prefix = self.cache.read(call.layer)
            segments = [(k, v)] if prefix is None else [prefix, (k, v)]
        # [1 + C, B, Hkv, T, d]; values may be of another width than keys
        pairs = [(blocks(x[:rows], channels), blocks(y[:rows], channels)) for x, y in segments]
        queries = q.reshape(channels, b, kv, group, length, dim).permute(1, 2, 0, 3, 4, 5)  # [B, Hkv, 1 + C, G, Q, d]
        mask = call.mask
        if mask is not None:
            mask = mask[:b] if mask.shape[0] == rows else mask
        total = sum(x.shape[3] for x, _ in pairs)
        quick = mode.graph == "none" and mode.offsets is None and mode.tap is None
        run = self._quick if quick and len(pairs) == 1 and call.softcap is None and call.sinks is None else self._block
        parts = []
        for start in range(0, length, mode.block):
            stop = min(start + mode.block, length)
            piece = mask[:, :, start:stop] if mask is not None else None
            seen = total - length + stop
            used = pairs
            if piece is not None and seen < total and len(pairs) == 1 and bool((piece[..., seen:] < 0).all()):
                piece = piece[..., :seen]
                used = [(x[:, :, :, :seen], y[:, :, :, :seen]) for x, y in pairs]
            parts.append(run(call, queries[:, :, :, :, start:stop], used, piece))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=4)  # [B, Hkv, 1 + C, G, Q, d]
        return out.permute(2, 0, 4, 1, 3, 5).reshape(rows, length, heads, v.shape[-1]), None

    def _block(self, call: AttentionCall, q: Tensor, pairs: list[tuple[Tensor, Tensor]], mask: Tensor | None) -> Tensor:
        mode, layer = self.mode, call.layer
        b, kv, channels, group, length, dim = q.shape
        size, width = group * length, pairs[0][1].shape[-1]
        flat = q.reshape(b, kv, channels * size, dim)
        needed = flat if self.through_scores else flat[:, :, :size]
        raw = _joined([torch.matmul(needed, x[0].transpose(-1, -2)) for x, _ in pairs])
        if mode.offsets is not None:
            extra = mode.offsets.scores(layer, needed)
            raw = raw if extra is None else raw + extra
        if channels > 1 and self.through_scores:
            first = flat[:, :, :size]
            cross = _joined([torch.matmul(first, x[1:].transpose(-1, -2)) for x, _ in pairs])  # [C, B, Hkv, size, T]
            cross = cross.permute(1, 2, 0, 3, 4).reshape(b, kv, (channels - 1) * size, -1)
            raw = torch.cat([raw[:, :, :size], raw[:, :, size:] + cross], dim=2)
        scores = raw[:, :, :size] * call.scaling
        slope: Tensor | None = None
        if call.softcap is not None:
            capped = torch.tanh(scores / call.softcap) * call.softcap
            slope = mode.slope(scores, capped)
            ruled = mode.graph == "surrogate" and self.through_scores
            scores = rules.gradient_of(scores * slope.to(scores.dtype), capped) if ruled else capped
        if mask is not None:
            bias = mask[:, :, None].expand(-1, 1, group, -1, -1).reshape(mask.shape[0], 1, size, -1)
            scores = scores + bias
        sinks = call.sinks
        if sinks is not None:
            weights = softmax_with_sinks(scores.reshape(b, kv * group, length, -1), sinks, scores.dtype).reshape(
                b, kv, size, -1
            )
        else:
            weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
        rows = weights
        if channels > 1 and self.through_scores:
            ds = raw[:, :, size:].reshape(b, kv, channels - 1, size, -1) * (call.scaling / self.divisors[0])
            if slope is not None:
                ds = ds * slope[:, :, None].to(ds.dtype)
            a = weights[:, :, None]
            ads = a * ds
            dw = ads - a * ads.sum(-1, keepdim=True)
            rows = torch.cat([weights, dw.reshape(b, kv, (channels - 1) * size, -1)], dim=2)
        out = _weighted(rows.to(q.dtype), [y[0] for _, y in pairs])  # offsets make narrow scores wide
        if mode.offsets is not None:
            extra = mode.offsets.out(layer, rows)
            out = out if extra is None else (out + extra).to(out.dtype)
        if channels > 1:
            dv = _weighted(weights, [y[1:] for _, y in pairs])  # [C, B, Hkv, size, d]
            dv = dv.permute(1, 2, 0, 3, 4).reshape(b, kv, (channels - 1) * size, width)
            dv = dv / self.divisors[2]
            tangent = out[:, :, size:] + dv if self.through_scores else dv
            out = torch.cat([out[:, :, :size], tangent], dim=2)
        if mode.tap is not None:
            mode.tap(layer, raw, rows, needed, out)
        return out.reshape(b, kv, channels, group, length, width)

    def _quick(self, call: AttentionCall, q: Tensor, pairs: list[tuple[Tensor, Tensor]], mask: Tensor | None) -> Tensor:
        """:meth:`_block` without graph, offsets, cap and sinks: the same sums, in place."""
        b, kv, channels, group, length, dim = q.shape
        size = group * length
        flat = q.reshape(b, kv, channels * size, dim)
        keys, values = pairs[0]
        width = values.shape[-1]
        through = self.through_scores and channels > 1
        raw = torch.matmul(flat if self.through_scores else flat[:, :, :size], keys[0].transpose(-1, -2))
        scores = raw[:, :, :size].mul_(call.scaling)
        if mask is not None:
            bias = mask[:, :, None].expand(-1, 1, group, -1, -1)
            scores.view(b, kv, group, length, -1).add_(bias)
        wide = torch.promote_types(raw.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
        if channels == 1:
            return torch.matmul(weights, values[0]).reshape(b, kv, channels, group, length, width)
        first = flat[:, :, :size]
        if through:
            scores.copy_(weights)
            for c in range(1, channels):
                part = raw[:, :, c * size : (c + 1) * size]
                part.add_(torch.matmul(first, keys[c].transpose(-1, -2)))
                part.mul_(weights)
                part.sub_(weights * part.sum(-1, keepdim=True)).mul_(call.scaling / self.divisors[0])
            out = torch.matmul(raw, values[0])
        else:
            out = q.new_zeros(b, kv, channels * size, width)
            out[:, :, :size] = torch.matmul(weights, values[0])
        for c in range(1, channels):
            out[:, :, c * size : (c + 1) * size].add_(torch.matmul(weights, values[c]), alpha=1 / self.divisors[2])
        return out.reshape(b, kv, channels, group, length, width)
