"""Attention over keys and values.

Rules for the gradient through q, k and v (divisors): AttnLRP's uniform rule for two successive matrix products
(proposition 3.3; 4, 4, 2) or CP-LRP (Ali et al., 2022; nothing through q and k: 0, 0, 1). For tangents:

    s' = (q' K^T + q K'^T) / 4,  A' = A s' - A sum(A s'),  out' = A' V + A V' / 2      (AttnLRP)
    out' = A V'                                                                        (CP-LRP)

Where rotary positions are inputs of their own (PA-LRP), q' and k' are halved in the dimensions that rotate, and a position of
weight c adds ``c q / 2`` and ``c k / 2`` there (:mod:`limelight.relevance.positions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from limelight.models.detect import is_attention
from limelight.models.runtime.attention import AttentionCall, AttentionHook, softmax_with_sinks
from limelight.relevance import rules
from limelight.relevance.forward import flash
from limelight.relevance.forward import fused_attention as fused
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.kind import LayerKind, ModuleMatch
from limelight.relevance.mode import Divisors, Mode, blocks


class AttentionRule(AttentionHook):
    """Divides the gradient through q, k and v, after rotary embedding, before head repetition and offsets."""

    def __init__(self, divisors: Divisors, only: frozenset[int] | None = None) -> None:
        self.divisors, self.only = divisors, only

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = (rules.divided(x, n) for x, n in zip((q, k, v), self.divisors, strict=True))
        return a, b, c

    def softcap(self, layer: int, scores: Tensor, value: Tensor) -> Tensor:
        if self.divisors == (1, 1, 1) or not self.divisors[0] or not scores.requires_grad:
            return value
        return rules.identity(scores, value)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _weighted(weights: Tensor, values: list[Tensor]) -> Tensor:
    """Compute ``weights @ values`` over segments of positions."""
    if len(values) == 1:
        return torch.matmul(weights, values[0])
    split = values[0].shape[-2]
    return torch.matmul(weights[..., :split], values[0]) + torch.matmul(weights[..., split:], values[1])


class DualAttention(AttentionHook):
    """Attention over values and tangents, reading the prefix of a :class:`DualCache` in place."""

    def __init__(
        self,
        mode: Mode,
        cache: DualCache,
        divisors: Divisors,
        rotations: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.mode, self.cache, self.divisors, self.rotations = mode, cache, divisors, rotations or {}
        self.through_scores = divisors[0] > 0

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        mode, b = self.mode, self.mode.batch
        q, k, v = call.query, call.key, call.value
        rows, heads, length, dim = q.shape
        channels = rows // b
        kv = k.shape[1]
        group = heads // kv
        if mode.graph == "surrogate":
            q, k, v = (
                torch.cat([rules.divided(x[:b], n), x[b:]]) for x, n in zip((q, k, v), self.divisors, strict=True)
            )
        if (rotated := self.rotations.get(call.layer)) is not None:
            q, k = (self._positioned(x, mask, channels) for x, mask in zip((q, k), rotated, strict=True))
            call = replace(call, query=q, key=k)
        beside = call.layer in self.cache.reading
        if not beside and self._fuses(call, channels):
            return self._fused(call, channels), None
        if mode.write and not beside:
            self.cache.write(call.layer, k, v)
            if (starts := self._one_pass(call, channels)) is not None:
                tangent = call.scaling / self.divisors[0] if self.through_scores else 0.0
                return flash.attend(q, k, v, starts, channels, call.scaling, tangent, 1 / self.divisors[2]), None
        if beside:
            segments = [(k, v)]
        elif mode.write and mode.graph == "none":
            joined = self.cache.read(call.layer, extra=length)
            segments = [joined if joined is not None else (k, v)]
        else:  # the prefix is read in place; only the new position carries a graph
            prefix = self.cache.read(call.layer)
            segments = [(k, v)] if prefix is None else [prefix, (k, v)]
        # [1 + C, B, Hkv, T, d]; values may have a different width than keys
        pairs = [(blocks(x[:rows], channels), blocks(y[:rows], channels)) for x, y in segments]
        queries = q.reshape(channels, b, kv, group, length, dim).permute(1, 2, 0, 3, 4, 5)  # [B, Hkv, 1 + C, G, Q, d]
        mask = call.mask
        if mask is not None:
            mask = mask[:b] if mask.shape[0] == rows else mask
            mask = mask.expand(-1, -1, length, -1)
        total = sum(x.shape[3] for x, _ in pairs)
        quick = mode.graph == "none" and mode.offsets is None and mode.tap is None
        run = self._quick if quick and len(pairs) == 1 and call.softcap is None and call.sinks is None else self._block
        parts = []
        size = mode.queries_at_once(rows * heads * total, q.device.type)
        for start in range(0, length, size):
            stop = min(start + size, length)
            piece = mask[:, :, start:stop] if mask is not None else None
            seen = total - length + stop
            used = pairs
            if (
                piece is not None
                and seen < total
                and len(pairs) == 1
                and self._hidden(call.mask, start, piece[..., seen:])
            ):
                piece = piece[..., :seen]
                used = [(x[:, :, :, :seen], y[:, :, :, :seen]) for x, y in pairs]
            parts.append(run(call, queries[:, :, :, :, start:stop], used, piece))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=4)  # [B, Hkv, 1 + C, G, Q, d]
        return out.permute(2, 0, 4, 1, 3, 5).reshape(rows, length, heads, v.shape[-1]), None

    def _positioned(self, x: Tensor, rotated: Tensor, channels: int) -> Tensor:
        """Split tangents ``[(1 + C) * B, H, T, d]`` of rotated vectors between content and position, half each."""
        half = rotated.to(x.device, x.dtype) / 2
        value, *tangents = x.chunk(channels)
        if self.mode.graph == "surrogate" and value.requires_grad:
            value = rules.gradient_of(value * (1 - half), value)
        tangents = [t * (1 - half) for t in tangents]
        if self.mode.weights is not None and tangents:
            own = self.mode.const(value) * half
            weights = self.mode.weights[:, :, None, :, None].to(x.device, x.dtype)
            tangents = [t + w * own for t, w in zip(tangents, weights, strict=True)]
        return torch.cat([value, *tangents])

    def _one_pass(self, call: AttentionCall, channels: int) -> Tensor | None:
        """Return each row's first position, int32 ``[B]``, if this prefill can be computed in one pass over the keys."""
        mode, q, k, mask = self.mode, call.query, call.key, call.mask
        length, dim = q.shape[2:]
        plain = mode.graph == "none" and mode.offsets is None and mode.tap is None
        whole = self.cache.length == 0 and self.cache.slot is None and length > 1 and k.shape[2] == length
        same = k.shape[-1] == call.value.shape[-1] and k.dtype is q.dtype is call.value.dtype
        if mask is None or channels == 1 or call.softcap is not None or call.sinks is not None:
            return None
        if not (plain and whole and same and flash.trusted(q.dtype, dim, q.device)):
            return None
        if id(mask) not in mode.starts:
            start = flash.causal_starts(mask[: mode.batch], length)
            mode.starts[id(mask)] = None if start is None else start.expand(mode.batch).contiguous()
        return mode.starts[id(mask)]

    def _hidden(self, mask: Tensor | None, start: int, later: Tensor) -> bool:
        """Return whether the mask hides all later positions from the queries from ``start`` on; cached per forward."""
        key = (id(mask), start)
        if key not in self.mode.trims:
            self.mode.trims[key] = bool((later < 0).all())
        return self.mode.trims[key]

    def _fuses(self, call: AttentionCall, channels: int) -> bool:
        mode, q = self.mode, call.query
        plain = mode.offsets is None and call.softcap is None and call.sinks is None and self.through_scores
        wide = q.dtype is call.value.dtype and q.dtype in (torch.float32, torch.float64)
        return mode.graph == "true" and channels > 1 and q.shape[2] == 1 and plain and wide

    def _fused(self, call: AttentionCall, channels: int) -> Tensor:
        """:meth:`_block` for one position without offsets, cap and sinks. It is always written to the cache: entries beyond
        the cache's length are ignored until :meth:`DualCache.advance`, and are overwritten by then."""
        q, k, v, b = call.query, call.key, call.value, self.mode.batch
        rows, heads, _, dim = q.shape
        kv = k.shape[1]
        self.cache.write(call.layer, k, v)
        keys, values = (blocks(x[:rows], channels) for x in self.cache.read(call.layer, extra=1) or ())
        flat = q.reshape(channels, b, kv, heads // kv, dim).permute(1, 2, 0, 3, 4).reshape(b, kv, -1, dim)
        mask = call.mask if call.mask is None or call.mask.shape[0] != rows else call.mask[:b]
        raw = fused.scores(flat, blocks(k, channels), keys)
        out, weights = fused.mix(raw, blocks(v, channels), values, mask, call.scaling, self.divisors)
        if self.mode.tap is not None:
            self.mode.tap(call.layer, raw, weights, flat, out)
        out = out.reshape(b, kv, channels, heads // kv, -1).permute(2, 0, 1, 3, 4)
        return out.reshape(rows, 1, heads, v.shape[-1])

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
        by_head = scores.reshape(b, kv * group, length, -1)
        weights = softmax_with_sinks(by_head, call.sinks, q.dtype).reshape(b, kv, size, -1)
        rows = weights
        if channels > 1 and self.through_scores:
            ds = raw[:, :, size:].reshape(b, kv, channels - 1, size, -1) * (call.scaling / self.divisors[0])
            if slope is not None:
                ds = ds * slope[:, :, None].to(ds.dtype)
            a = weights[:, :, None]
            ads = a * ds
            dw = ads - a * ads.sum(-1, keepdim=True)
            rows = torch.cat([weights, dw.reshape(b, kv, (channels - 1) * size, -1)], dim=2)
        out = _weighted(rows.to(q.dtype), [y[0] for _, y in pairs])  # offsets promote narrow scores to a wider dtype
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
        """:meth:`_block` without graph, offsets, cap and sinks: the same result, computed in place."""
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


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    """Match attention modules; their rule is a hook inside the shared attention function, not on the module."""
    if is_attention(module):
        yield ModuleMatch("attention", name, module)


KIND = LayerKind("attention", recognise, order=15)
