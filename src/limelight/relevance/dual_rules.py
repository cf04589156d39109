"""Forward twins of the rules: how the rows of a batch that are tangents pass each kind of module.

Row block 0 of every tensor is the model itself, the further blocks are tangents along ``c * x``. Twins are attached to
module instances like the rules, and come off again.

    norm        tangents use block 0's 1/std
    linear      bias on block 0 only
    activation  z' * const(act(z) / z)
    gated       (a' u + a u') / 2
    streams     block 0's quotients of lengths: :mod:`limelight.relevance.held_streams`
    gate, router   block 0's decision holds for all
    experts     :mod:`limelight.relevance.dual_experts`
    attention   :mod:`limelight.relevance.dual_attention`
    mixer       :mod:`limelight.relevance.mixers`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.position_mask import is_positions
from limelight.models.runtime.attention import AttentionHook, active_hooks, check_bound
from limelight.models.runtime.wrappers import modules_of
from limelight.relevance import rules
from limelight.relevance.attachment import Attachment, holding, set_aside
from limelight.relevance.composites import ATTN_LRP, CP_LRP, Composite, replace_forward, sites_of
from limelight.relevance.dual_attention import FALLBACK, DualAttention, Mode, block_rows, blocks
from limelight.relevance.dual_cache import DualCache
from limelight.relevance.dual_experts import experts_twin
from limelight.relevance.dual_factor import factor_twins
from limelight.relevance.dual_fused import root_mean_square
from limelight.relevance.dual_gated import gated_product
from limelight.relevance.dual_gates import gate_twin, router_twin
from limelight.relevance.dual_linear import biased_twin, plain, unbiased_twin
from limelight.relevance.experts import ExpertsSpec
from limelight.relevance.gated import HALVES, GatedSpec
from limelight.relevance.gated_attention import GateSpec
from limelight.relevance.held_streams import hold_streams
from limelight.relevance.kinds import Kind, Site
from limelight.relevance.mixer_parts import Mixer
from limelight.relevance.mixers import mixer_twin
from limelight.relevance.norms import NormSpec
from limelight.relevance.probing import is_linear
from limelight.relevance.sparse_gate import kept_blocks
from limelight.relevance.streams import StreamsSpec


def _norm_twin(site: Site, mode: Mode) -> Callable[..., Tensor]:
    spec = site.spec
    original = site.module.forward
    if not isinstance(spec, NormSpec):
        raise UnknownKindError(f"{site.name}: a norm without a spec", hint=FALLBACK)
    gain, intake, bias, eps = spec.gain, spec.intake, spec.bias, spec.eps

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if mode.channels == 1 and mode.graph != "surrogate":
            return original(x, *args, **kwargs)  # type: ignore[no-any-return]
        wide = torch.promote_types(x.dtype, torch.float32)
        y = blocks(x, mode.channels).to(wide)
        if intake is not None:
            y = y * intake.to(y.device, wide)
        if mode.graph == "true" and x.dtype is torch.float32 and not spec.center and bias is None:
            known = None if gain is None else gain.to(y.device, wide).detach()
            return root_mean_square(y, known, eps).reshape(x.shape)
        if spec.center:
            y = y - y.mean(-1, keepdim=True)
        base = y[0]
        scale = mode.const(torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps))
        y = y * scale
        if gain is not None:
            factor = gain.to(y.device, wide)
            y = y.mul_(factor) if mode.graph == "none" else y * factor
        if bias is not None:
            y = torch.cat([y[:1] + bias.to(y.device, wide), y[1:]])
        if x.dtype is not torch.float32:  # the model's own roundings (in float64 its norms still compute in float32)
            value = original(x[: block_rows(x, mode.channels)]).detach()[None].to(y.device, wide)
            y = torch.cat([rules.gradient_of(y[:1], value) if mode.graph != "none" else value, y[1:]])
        return y.reshape(x.shape).to(x.dtype)

    return forward


def _activation_twin(site: Site, mode: Mode) -> Callable[..., Tensor]:
    original = site.module.forward

    def forward(z: Tensor) -> Tensor:
        if mode.channels == 1 and mode.graph != "surrogate":
            return original(z)  # type: ignore[no-any-return]
        y = blocks(z, mode.channels)
        value: Tensor = original(y[0])
        slope = mode.slope(y[0], value).to(z.dtype)
        first = rules.gradient_of(y[0] * slope, value) if mode.graph == "surrogate" else value
        return torch.cat([first[None], y[1:] * slope]).reshape(z.shape)

    return forward


def _gated_twin(site: Site, mode: Mode) -> Callable[..., Tensor]:
    spec = site.spec
    if not isinstance(spec, GatedSpec):
        raise UnknownKindError(f"{site.name}: a gated MLP without a spec", hint=FALLBACK)
    split = _split_of(spec)
    act, down, original = spec.act, spec.down, site.module.forward
    activation = type(act).forward

    def forward(x: Tensor) -> Tensor:
        if mode.channels == 1 and mode.graph != "surrogate":
            return original(x)  # type: ignore[no-any-return]
        gate, up = split(x)
        z, u = blocks(gate, mode.channels), blocks(up, mode.channels)
        if spec.spread is not None:
            z = kept_blocks(mode, z, spec.spread)
        out: Tensor = down(gated_product(mode, z, u, activation(act, z[0])).reshape(up.shape))
        return out

    return forward


def _table_twin(module: nn.Module, mode: Mode) -> Callable[..., Tensor]:
    """Learned positions are a bias: they enter block 0 alone."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(*args, **kwargs)
        if mode.channels == 1:
            return out
        if out.shape[0] == 1:
            out = out.expand(mode.channels * mode.batch, *out.shape[1:])
        first = block_rows(out, mode.channels)
        return torch.cat([out[:first], torch.zeros_like(out[first:])])

    return forward


def _split_of(spec: GatedSpec) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x -> (gate, up)."""
    if spec.gate is not None and spec.up is not None:
        gate, up = spec.gate, spec.up
        return lambda x: (gate(x), up(x))
    fused: Any = spec.fused
    halves = HALVES[spec.order]
    return lambda x: halves(fused(x))


class DualRules:
    """Forward twins for one model, built once and attached around every dual forward.

    Raises:
        UnknownKindError: a composite or a module without a forward twin; the hint names the fallback.
    """

    def __init__(self, adapter: Adapter, mode: Mode, cache: DualCache, composite: Composite = ATTN_LRP) -> None:
        if composite.name not in (ATTN_LRP.name, CP_LRP.name):
            raise UnknownKindError(
                f"{composite.name!r} has no forward twin", hint="use attnlrp or cp-lrp, or exact mode"
            )
        self.adapter, self.mode, self.cache, self.composite = adapter, mode, cache, composite
        self.attention = DualAttention(mode, cache, composite)
        self.attention.only = frozenset(map(id, modules_of(adapter.decoder)))
        self.forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        self.hooks: list[Callable[[], Callable[[], None]]] = []
        with set_aside(adapter):  # twins go around the modules' own forwards, and modules are probed by running them
            self._build()

    def _build(self) -> None:
        adapter, mode = self.adapter, self.mode
        inside = {id(s.spec.act) for s in sites_of(adapter) if isinstance(s.spec, GatedSpec)}
        gates: set[int] = set()
        for site in sites_of(adapter):
            if site.kind is Kind.NORM:
                self.forwards.append((site.module, _norm_twin(site, mode)))
            elif site.kind is Kind.ACTIVATION and id(site.module) not in inside:
                self.forwards.append((site.module, _activation_twin(site, mode)))
            elif isinstance(site.spec, GatedSpec) and site.spec.factor:
                self.forwards += factor_twins(site.module, site.spec, mode)
            elif site.kind is Kind.GATED:
                self.forwards.append((site.module, _gated_twin(site, mode)))
            elif site.kind is Kind.MIXER and isinstance(site.spec, Mixer):
                twin = mixer_twin(site.module, site.spec, mode, self.cache, self.composite.attention)
                self.forwards.append((site.module, twin))
            elif site.kind is Kind.SELECTION:
                raise UnsupportedError(
                    f"{site.name}: sparse attention chooses its keys by an indexer with a cache of its own, for which there "
                    "is no forward twin",
                    hint=FALLBACK,
                )
            elif isinstance(site.spec, StreamsSpec):
                self.hooks.append(hold_streams(site.spec, mode))
            elif site.kind is Kind.ROUTER:
                self.forwards.append((site.module, router_twin(site.module, mode)))
            elif site.kind is Kind.EXPERTS and isinstance(site.spec, ExpertsSpec):
                self.forwards.append((site.module, experts_twin(site.module, site.spec, mode)))
            elif site.kind is Kind.GATE and isinstance(site.spec, GateSpec):
                gate: Any = site.spec.gate
                biased = isinstance(getattr(gate, "bias", None), Tensor)
                linear = biased_twin(gate, mode) if biased else gate.forward
                self.forwards.append((gate, gate_twin(site.spec, mode, linear)))
                gates.add(id(gate))
        deciding = gates | {id(m) for s in sites_of(adapter) if s.kind is Kind.ROUTER for m in s.module.modules()}
        within = {id(m) for m in adapter.decoder.layers.modules()}
        taken = {id(module) for module, _ in self.forwards}
        for module in adapter.decoder.modules():
            if id(module) in deciding:
                continue
            own = {**module._parameters, **module._buffers}  # a wrapper's bias may be that of the linear inside
            if is_linear(module) and isinstance(own.get("bias"), Tensor):
                self.forwards.append((module, biased_twin(module, mode)))
            elif plain(module) and id(module) not in taken:
                self.forwards.append((module, unbiased_twin(module, mode)))
            elif (isinstance(module, nn.Embedding) or is_positions(module)) and id(module) not in within:
                self.forwards.append((module, _table_twin(module, mode)))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The twins on the model inside the block, also off again after an exception; rules of a surrounding block wait.

        Raises:
            UnsupportedError: attention hooks of the caller are active, which twins do not run.
        """

        def put_on(stack: ExitStack) -> tuple[AttentionHook, ...]:
            for module, forward in self.forwards:
                stack.callback(replace_forward(module, forward))
            for hook in self.hooks:
                stack.callback(hook())
            return ()

        with self.adapter.routed(), holding(self.adapter, Attachment(self.attention, put_on)) as seen:
            others = sorted({type(h).__name__ for h in active_hooks() if h.only is None})
            if others:
                raise UnsupportedError(
                    f"expected no attention hooks around forward-mode relevance, got {', '.join(others)}", hint=FALLBACK
                )
            yield
            check_bound(seen, set(self.adapter.attention_layers))
