"""Forward twins of the rules: how the rows of a batch that are tangents pass each kind of module.

Row block 0 of every tensor is the model itself, the further blocks are tangents along ``c * x``. Twins are attached to
module instances like the rules, and come off again.

    norm        tangents use block 0's 1/std
    linear      bias on block 0 only
    activation  z' * const(act(z) / z)
    gated       (a' u + a u') / 2
    attention   s' = (q' K^T + q K'^T) / 4,  A' = A s' - A sum(A s'),  out' = A' V + A V' / 2   (AttnLRP)
                out' = A V'                                                                     (CP-LRP)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.errors import UnknownKindError
from limelight.models.adapter import Adapter
from limelight.models.attention import AttentionCall, AttentionHook, attention_hooks, softmax_with_sinks
from limelight.relevance import rules
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite, divided, replace_forward, sites_of
from limelight.relevance.dual_cache import DualCache
from limelight.relevance.kinds import GatedSpec, Kind, NormSpec, Site, is_linear

FALLBACK = "use exact mode (lime(), attribute()), which needs no forward twin"


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
        graph: ``none``, ``surrogate`` (constants stay constants and the factors act again on block 0, as in the authors'
            second-order pass) or ``true`` (the gradient of the value).
        write: store the new keys and values as they are computed.
        tap: when set, called with (layer, raw scores, weights, q, out) of the current token.
    """

    batch: int = 1
    graph: str = "none"
    write: bool = True
    offsets: Offsets | None = None
    tap: Callable[[int, Tensor, Tensor, Tensor, Tensor], None] | None = None
    block: int = 512

    def const(self, x: Tensor) -> Tensor:
        """A factor of the rules: a constant unless the true gradient is wanted."""
        return x if self.graph == "true" else x.detach()

    def shared(self, x: Tensor, parts: int) -> Tensor:
        """Block 0's part of a product: its gradient is divided again in the surrogate."""
        return rules.uniform(x, parts) if self.graph == "surrogate" else x


def _blocks(x: Tensor, batch: int) -> Tensor:
    return x.reshape(-1, batch, *x.shape[1:])


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
        pairs = [(_blocks(x[:rows], b), _blocks(y[:rows], b)) for x, y in segments]  # [1 + C, B, Hkv, T, d]
        queries = q.reshape(channels, b, kv, group, length, dim).permute(1, 2, 0, 3, 4, 5)  # [B, Hkv, 1 + C, G, Q, d]
        mask = call.mask
        if mask is not None:
            mask = mask[:b] if mask.shape[0] == rows else mask
        total = sum(x.shape[3] for x, _ in pairs)
        parts = []
        for start in range(0, length, mode.block):
            stop = min(start + mode.block, length)
            piece = mask[:, :, start:stop] if mask is not None else None
            seen = total - length + stop
            used = pairs
            if piece is not None and seen < total and len(pairs) == 1 and bool((piece[..., seen:] < 0).all()):
                piece = piece[..., :seen]
                used = [(x[:, :, :, :seen], y[:, :, :, :seen]) for x, y in pairs]
            parts.append(self._block(call, queries[:, :, :, :, start:stop], used, piece))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=4)  # [B, Hkv, 1 + C, G, Q, d]
        return out.permute(2, 0, 4, 1, 3, 5).reshape(rows, length, heads, dim), None

    def _block(self, call: AttentionCall, q: Tensor, pairs: list[tuple[Tensor, Tensor]], mask: Tensor | None) -> Tensor:
        mode, layer = self.mode, call.layer
        b, kv, channels, group, length, dim = q.shape
        size = group * length
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
            slope = mode.const(rules.slope(scores, capped) if mode.graph != "true" else capped / (scores + rules.EPS))
            scores = rules.gradient_of(scores * slope.to(scores.dtype), capped) if mode.graph == "surrogate" else capped
        if mask is not None:
            bias = mask[:, :, None].expand(-1, 1, group, -1, -1).reshape(mask.shape[0], 1, size, -1)
            scores = scores + bias
        sinks = call.sinks
        if sinks is not None:
            weights = softmax_with_sinks(
                scores.reshape(b, kv * group, length, -1), sinks, scores.dtype
            ).reshape(b, kv, size, -1)
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
        out = _weighted(rows, [y[0] for _, y in pairs])
        if mode.offsets is not None:
            extra = mode.offsets.out(layer, rows)
            out = out if extra is None else (out + extra).to(out.dtype)
        if channels > 1:
            dv = _weighted(weights, [y[1:] for _, y in pairs])  # [C, B, Hkv, size, d]
            dv = dv.permute(1, 2, 0, 3, 4).reshape(b, kv, (channels - 1) * size, dim)
            dv = dv / self.divisors[2]
            tangent = out[:, :, size:] + dv if self.through_scores else dv
            out = torch.cat([out[:, :, :size], tangent], dim=2)
        if mode.tap is not None:
            mode.tap(layer, raw, rows, needed, out)
        return out.reshape(b, kv, channels, group, length, dim)


def _norm_twin(site: Site, mode: Mode) -> Callable[..., Tensor]:
    spec = site.spec
    original = site.module.forward
    if not isinstance(spec, NormSpec):
        raise UnknownKindError(f"{site.name}: a norm without a spec", hint=FALLBACK)
    gain, bias, eps = spec.gain, spec.bias, spec.eps

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        b = mode.batch
        if x.shape[0] == b and mode.graph != "surrogate":
            return original(x, *args, **kwargs)  # type: ignore[no-any-return]
        wide = torch.promote_types(x.dtype, torch.float32)
        y = _blocks(x, b).to(wide)
        if spec.center:
            y = y - y.mean(-1, keepdim=True)
        base = y[0]
        scale = mode.const(torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps))
        y = y * scale
        if gain is not None:
            y = y * gain.to(wide)
        if bias is not None:
            y = torch.cat([y[:1] + bias.to(wide), y[1:]])
        if x.dtype is torch.float64:  # transformers' norms compute in float32 even then: keep the model's own value
            value = original(x[:b]).detach()[None]
            y = torch.cat([rules.gradient_of(y[:1], value) if mode.graph != "none" else value, y[1:]])
        return y.reshape(x.shape).to(x.dtype)

    return forward


def _linear_twin(module: Any, mode: Mode) -> Callable[..., Tensor]:
    original, bias = module.forward, module.bias
    exact = type(module) is nn.Linear

    def forward(x: Tensor) -> Tensor:
        b = mode.batch
        if x.shape[0] == b:
            return original(x)  # type: ignore[no-any-return]
        if exact:
            out = functional.linear(x, module.weight)
            flag = out.new_zeros(x.shape[0], *([1] * (x.ndim - 1)))
            flag[:b] = 1
            return out + flag * bias
        out = original(x)
        return torch.cat([out[:b], out[b:] - bias.to(out.dtype)])

    return forward


def _slope(z: Tensor, a: Tensor, mode: Mode) -> Tensor:
    if mode.graph == "true":
        safe = torch.where(z == -rules.EPS, torch.full_like(z, rules.EPS), z)
        return a / (safe + rules.EPS)
    return rules.slope(z, a)


def _activation_twin(site: Site, mode: Mode) -> Callable[..., Tensor]:
    original = site.module.forward

    def forward(z: Tensor) -> Tensor:
        b = mode.batch
        if z.shape[0] == b and mode.graph != "surrogate":
            return original(z)  # type: ignore[no-any-return]
        y = _blocks(z, b)
        value: Tensor = original(y[0])
        slope = _slope(y[0], value, mode).to(z.dtype)
        first = rules.gradient_of(y[0] * slope, value) if mode.graph == "surrogate" else value
        return torch.cat([first[None], y[1:] * slope]).reshape(z.shape)

    return forward


def _gated_twin(site: Site, mode: Mode) -> Callable[..., Tensor]:
    spec = site.spec
    if not isinstance(spec, GatedSpec):
        raise UnknownKindError(f"{site.name}: a gated MLP without a spec", hint=FALLBACK)
    split = _split_of(site, spec)
    act, down, original = spec.act, spec.down, site.module.forward
    activation = type(act).forward

    def forward(x: Tensor) -> Tensor:
        b = mode.batch
        if x.shape[0] == b and mode.graph != "surrogate":
            return original(x)  # type: ignore[no-any-return]
        gate, up = split(x)
        z, u = _blocks(gate, b), _blocks(up, b)
        value = activation(act, z[0])
        slope = _slope(z[0], value, mode).to(z.dtype)
        a0 = rules.gradient_of(z[0] * slope, value) if mode.graph == "surrogate" else value
        first = mode.shared(a0 * u[0], 2)
        rest = (z[1:] * slope * u[0] + a0 * u[1:]) / 2
        out: Tensor = down(torch.cat([first[None], rest]).reshape(up.shape))
        return out

    return forward


def _split_of(site: Site, spec: GatedSpec) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x -> (gate, up); for a fused linear the order of its halves is probed."""
    if spec.gate is not None and spec.up is not None:
        gate, up = spec.gate, spec.up
        return lambda x: (gate(x), up(x))
    fused: Any = spec.fused
    x = torch.linspace(-1, 1, int(fused.in_features)).reshape(1, 1, -1).to(fused.weight)
    with torch.no_grad():
        want = site.module(x)
        h = fused(x)
        half = h.shape[-1] // 2
        orders = {
            "gate, up": (slice(0, half), slice(half, None)),
            "up, gate": (slice(half, None), slice(0, half)),
            "interleaved": (slice(0, None, 2), slice(1, None, 2)),
        }
        errors = {n: float((spec.down(spec.act(h[..., g]) * h[..., u]) - want).abs().max()) for n, (g, u) in orders.items()}
    best = min(errors, key=lambda n: errors[n])
    if errors[best] > 1e-3 * (1 + float(want.abs().max())):
        raise UnknownKindError(f"{site.name}: cannot tell gate from up in its fused linear", hint=FALLBACK)
    g, u = orders[best]

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        h = fused(x)
        return h[..., g], h[..., u]

    return split


class DualRules:
    """Forward twins for one model, built once and attached around every dual forward.

    Raises:
        UnknownKindError: a composite or a module without a forward twin; the hint names the fallback.
    """

    def __init__(self, adapter: Adapter, mode: Mode, cache: DualCache, composite: Composite = ATTN_LRP) -> None:
        if composite.name not in (ATTN_LRP.name, CP_LRP.name):
            raise UnknownKindError(f"{composite.name!r} has no forward twin", hint="use attnlrp or cp-lrp, or exact mode")
        self.adapter, self.mode = adapter, mode
        self.attention = DualAttention(mode, cache, composite)
        self.forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        inside = {id(s.spec.act) for s in sites_of(adapter) if isinstance(s.spec, GatedSpec)}
        for site in sites_of(adapter):
            if site.kind is Kind.NORM:
                self.forwards.append((site.module, _norm_twin(site, mode)))
            elif site.kind is Kind.ACTIVATION and id(site.module) not in inside:
                self.forwards.append((site.module, _activation_twin(site, mode)))
            elif site.kind is Kind.GATED:
                self.forwards.append((site.module, _gated_twin(site, mode)))
        for module in [*adapter.decoder.layers.modules(), adapter.head]:
            if is_linear(module) and isinstance(module._parameters.get("bias"), Tensor):
                self.forwards.append((module, _linear_twin(module, mode)))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The twins on the model inside the block, also off again after an exception."""
        with ExitStack() as stack:
            for module, forward in self.forwards:
                stack.callback(replace_forward(module, forward))
            stack.enter_context(self.adapter.routed())
            stack.enter_context(attention_hooks(self.attention))
            yield
