"""Composites: which rule each kind gets, and how the rules come onto a model and off again.

    ATTN_LRP        AttnLRP: norms frozen, activations identity, gated products halved, attention q, k / 4 and v / 2
    CP_LRP          no relevance through q and k (Ali et al., 2022); relevance sums are the logit, biases and eps aside
    GRADIENT_INPUT  no rules: plain gradient x input

``RELEASED_AUDIO`` is what the authors' released code really runs on Qwen2-Audio (norms and MLP patched, attention not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from limelight.errors import HookError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, check_bound
from limelight.models.runtime.wrappers import modules_of
from limelight.relevance import rules
from limelight.relevance.attachment import Attachment, holding, set_aside
from limelight.relevance.differentiable import check_differentiable
from limelight.relevance.dual_mode import Mode
from limelight.relevance.experts import ExpertsSpec, experts_rule, router_rule, routers
from limelight.relevance.gated import GatedSpec
from limelight.relevance.gated_attention import GateSpec, checked, gate_rule
from limelight.relevance.held_streams import hold_streams
from limelight.relevance.kinds import Kind, Site, survey
from limelight.relevance.mixer_parts import Divisors, Mixer
from limelight.relevance.mixers import mixer_rule
from limelight.relevance.norms import NormSpec
from limelight.relevance.scales import scale_rule
from limelight.relevance.sparse_gate import sparse_hooks
from limelight.relevance.streams import StreamsSpec

Undo = Callable[[], None]
Rule = Callable[[Site], Undo]


@dataclass(frozen=True)
class Composite:
    """A table kind -> rule. ``attention`` is ``(q, k, v)`` divisors: 0 stops the relevance there, 1 leaves it alone."""

    name: str
    rules: Mapping[Kind, Rule] = field(default_factory=dict)
    attention: tuple[int, int, int] = (1, 1, 1)

    @property
    def plain(self) -> bool:
        return not self.rules and self.attention == (1, 1, 1)


class AttentionRule(AttentionHook):
    """Divides the gradient through q, k and v: after rotary, before head repetition and offsets."""

    def __init__(self, divisors: tuple[int, int, int], only: frozenset[int] | None = None) -> None:
        self.divisors, self.only = divisors, only

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = (rules.divided(x, n) for x, n in zip((q, k, v), self.divisors, strict=True))
        return a, b, c

    def softcap(self, layer: int, scores: Tensor, value: Tensor) -> Tensor:
        if self.divisors == (1, 1, 1) or not self.divisors[0] or not scores.requires_grad:
            return value
        return rules.identity(scores, value)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Undo:
    """Give one instance another forward; the undo puts back exactly what was there (accelerate puts its own)."""
    before = module.__dict__.get("forward")

    def undo() -> None:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before

    module.__dict__["forward"] = forward
    return undo


def _norm_rule(site: Site) -> Undo:
    spec, original = site.spec, site.module.forward
    if not isinstance(spec, NormSpec):
        raise HookError(f"{site.name} has no norm spec", hint="use sites from kinds.survey")

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not x.requires_grad:
            return original(x, *args, **kwargs)  # type: ignore[no-any-return]
        with torch.no_grad():
            value = original(x, *args, **kwargs)
        x = x.to(value.device)  # accelerate may run the module elsewhere
        if (intake := spec.intake) is not None:
            x = x * intake.to(x)
        return rules.frozen_norm(x, value, gain=spec.gain, center=spec.center, eps=spec.eps)

    return replace_forward(site.module, forward)


def _activation_rule(site: Site) -> Undo:
    original = site.module.forward

    def forward(z: Tensor) -> Tensor:
        if not z.requires_grad:
            return original(z)  # type: ignore[no-any-return]
        with torch.no_grad():
            value = original(z)
        return rules.identity(z, value)

    return replace_forward(site.module, forward)


def _gated_rule(site: Site) -> Undo:
    if not isinstance(site.spec, GatedSpec):
        raise HookError(f"{site.name} has no gated spec", hint="use sites from kinds.survey")

    spec = site.spec
    if spec.written and spec.gate is not None and spec.up is not None:
        return replace_forward(site.module, _written_rule(spec, spec.gate, spec.up, site.module.forward))

    def halve(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rules.uniform(args[0], 2), *args[1:])

    undo = [spec.down.register_forward_pre_hook(halve).remove]
    if spec.spread is not None and spec.gate is not None:
        undo += sparse_hooks(spec.gate, spec.act, spec.spread)

    def take_off() -> None:
        for one in undo:
            one()

    return take_off


def _written_rule(spec: GatedSpec, gate: nn.Module, up: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
    """The MLP written out, where no activation module could carry the identity rule."""

    def forward(x: Tensor) -> Tensor:
        if not x.requires_grad:
            return original(x)  # type: ignore[no-any-return]
        z = gate(x)
        out: Tensor = spec.down(rules.uniform(rules.identity(z, spec.act(z)) * up(x), 2))
        return out

    return forward


def _streams_rule(site: Site) -> Undo:
    if not isinstance(site.spec, StreamsSpec):
        raise HookError(f"{site.name} has no spec of its streams", hint="use sites from kinds.survey")
    return hold_streams(site.spec, Mode(graph="surrogate"))()


def _scale_rule(site: Site) -> Undo:
    return replace_forward(site.module, scale_rule(site.name, site.module))


def _router_rule(site: Site) -> Undo:
    return replace_forward(site.module, router_rule(site.module))


def _experts_rule(site: Site) -> Undo:
    if not isinstance(site.spec, ExpertsSpec):
        raise HookError(f"{site.name} has no spec of its experts", hint="use sites from kinds.survey")
    return replace_forward(site.module, experts_rule(site.module, site.spec))


def _gate_rule(site: Site) -> Undo:
    if not isinstance(site.spec, GateSpec):
        raise HookError(f"{site.name} has no spec of its gate", hint="use sites from kinds.survey")
    return replace_forward(site.spec.gate, gate_rule(site.spec))


def _mixer_rule(divisors: Divisors) -> Rule:
    def rule(site: Site) -> Undo:
        if not isinstance(site.spec, Mixer):
            raise HookError(f"{site.name} has no spec of its mixer", hint="use sites from kinds.survey")
        return replace_forward(site.module, mixer_rule(site.module, site.spec, divisors))

    return rule


_ELEMENTWISE: dict[Kind, Rule] = {
    Kind.NORM: _norm_rule,
    Kind.ACTIVATION: _activation_rule,
    Kind.GATED: _gated_rule,
    Kind.GATE: _gate_rule,
    Kind.ROUTER: _router_rule,
    Kind.SELECTION: _router_rule,
    Kind.SCALE: _scale_rule,
    Kind.EXPERTS: _experts_rule,
    Kind.STREAMS: _streams_rule,
}


def _named(name: str, divisors: Divisors) -> Composite:
    return Composite(name, {**_ELEMENTWISE, Kind.MIXER: _mixer_rule(divisors)}, divisors)


ATTN_LRP = _named("attnlrp", (4, 4, 2))
CP_LRP = _named("cp-lrp", (0, 0, 1))
GRADIENT_INPUT = Composite("gradient-input")
RELEASED_AUDIO = _named("released-audio", (1, 1, 1))

COMPOSITES = {c.name: c for c in (ATTN_LRP, CP_LRP, GRADIENT_INPUT, RELEASED_AUDIO)}

Structure = tuple[int, ...]
_SURVEYS: WeakKeyDictionary[nn.Module, tuple[Structure, list[Site]]] = WeakKeyDictionary()
_GATES: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()
_DIFFERENTIABLE: WeakKeyDictionary[nn.Module, Structure] = WeakKeyDictionary()


def structure(adapter: Adapter) -> Structure:
    """Which module instances there are: adapters and quantisers exchange them. A walk over the modules: take it along."""
    return (*map(id, modules_of(adapter.decoder)), id(adapter.head))


def sites_of(adapter: Adapter, now: Structure | None = None) -> list[Site]:
    """The survey of a model, made once and again when its modules have been exchanged (``now``: its structure)."""
    now = structure(adapter) if now is None else now
    with adapter.exclusive():  # modules are probed by running them
        known = _SURVEYS.get(adapter.decoder)
        if known is None or known[0] != now:
            with set_aside(adapter):
                known = _SURVEYS[adapter.decoder] = (now, survey(adapter.decoder))
    return known[1]


def require_gradients(adapter: Adapter, now: Structure | None = None) -> None:
    """Raise NotDifferentiableError when a linear layer or the head lets no gradient through."""
    now = structure(adapter) if now is None else now
    if _DIFFERENTIABLE.get(adapter.decoder) != now:
        deciding = {id(r) for m in adapter.decoder.layers.modules() for _, r in routers(m)}
        parts = [(n, m) for n, m in adapter.decoder.layers.named_modules(prefix="layers") if id(m) not in deciding]
        with set_aside(adapter):
            check_differentiable([*parts, ("the head", adapter.head)])
        _DIFFERENTIABLE[adapter.decoder] = now


@contextmanager
def gates_checked(adapter: Adapter, now: Structure | None = None) -> Iterator[tuple[AttentionHook, ...]]:
    """The first forward inside is checked: gates of attention do what their rule takes them to do. Yields its hook."""
    now = structure(adapter) if now is None else now
    gates = [(s.name, s.module, s.spec) for s in sites_of(adapter, now) if isinstance(s.spec, GateSpec)]
    if not gates or _GATES.get(adapter.decoder) == now:
        yield ()
        return
    runs: list[int] = []
    handle = adapter.decoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        with checked(gates) as hook:
            yield (hook,)
    finally:
        handle.remove()
    if runs:
        _GATES[adapter.decoder] = now


@contextmanager
def attached(adapter: Adapter, composite: Composite = ATTN_LRP, *hooks: AttentionHook) -> Iterator[None]:
    """The composite's rules on this model's decoder inside the block, and further attention ``hooks`` after them.

    Blocks may be nested, also by what attaches rules itself (:func:`attribute`, strategies): the innermost rules hold, and
    those around them are back afterwards. ``hooks`` of the surrounding block stay active.

    On exit, also after an exception, the instances are as they were (the model is bit-equal).

    Raises:
        UnknownKindError: a module has no known kind (not for GRADIENT_INPUT, which needs none).
        NotDifferentiableError: a linear layer lets no gradient through (some quantised kinds).
        HookError: attention did not go through the hooks; or rules are attached in the middle of a forward that has some.
    """
    with ExitStack() as stack:
        stack.enter_context(adapter.exclusive())
        now = structure(adapter)
        require_gradients(adapter, now)
        sites = sites_of(adapter, now) if composite.rules else []

        def put_on(inner: ExitStack) -> tuple[AttentionHook, ...]:
            for site in sites:
                rule = composite.rules.get(site.kind)
                if rule is not None:
                    inner.callback(rule(site))
            if composite.rules and adapter.head_scalars.cap is not None:
                plain = adapter.head_scalars
                adapter.head_scalars = replace(plain, rule=rules.identity)
                inner.callback(setattr, adapter, "head_scalars", plain)
            return inner.enter_context(gates_checked(adapter, now)) if composite.rules else ()

        stack.enter_context(adapter.routed())
        mine = Attachment(AttentionRule(composite.attention, frozenset(now)), put_on)
        seen = stack.enter_context(holding(adapter, mine, *hooks))
        yield
        if mine.runs:
            check_bound(seen, set(adapter.attention_layers))
