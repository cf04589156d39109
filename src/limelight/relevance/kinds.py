"""Which module is what: told by structure and by probing its behaviour, never by its class name.

    NORM        RMSNorm (w, 1 + w, none) or LayerNorm: a small probe must reproduce the module's output
    ACTIVATION  an elementwise function without parameters
    GATED       act(gate) * up, then down: found as an activation beside linears whose widths say so
    ATTENTION   goes through transformers' attention interface
    GATE        of an attention's output: :mod:`limelight.relevance.gated_attention`
    SELECTION   of the keys a query sees, by an indexer (sparse attention): a constant
    EXPERTS, ROUTER   of a mixture: :mod:`limelight.relevance.experts`
    SCALE       scales its input by what its further arguments say, linear in it
    MIXER       a recurrence or convolution in place of attention: :mod:`limelight.relevance.mixers`
    STREAMS     several residual streams, rescaled on their way in and out: :mod:`limelight.relevance.streams`
    LINEAR      plain for relevance

A module that owns parameters and fits none of these raises, so that no rule is ever silently missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.detect import is_attention
from limelight.models.marked import is_positions
from limelight.models.offload import weight_of
from limelight.models.unwrapped import unwrapped
from limelight.relevance.experts import ExpertsSpec, experts_spec, routers, stacked
from limelight.relevance.gated import GatedSpec, gated_spec
from limelight.relevance.gated_attention import GateSpec, gate_spec
from limelight.relevance.mixer_parts import Mixer
from limelight.relevance.mixers import mixer_spec
from limelight.relevance.probing import (
    HINT,
    REFUSALS,
    activation_of,
    apart,
    elementwise,
    is_leaf,
    is_linear,
    require_finite,
    sample,
    slack,
)
from limelight.relevance.scales import takes_more
from limelight.relevance.streams import StreamsSpec, side_branch, stream_router, streams_spec


class Kind(Enum):
    NORM = "norm"
    ACTIVATION = "activation"
    GATED = "gated"
    ATTENTION = "attention"
    GATE = "gate"
    MIXER = "mixer"
    SCALE = "scale"
    EXPERTS = "experts"
    ROUTER = "router"
    SELECTION = "selection"
    STREAMS = "streams"


@dataclass(frozen=True)
class NormSpec:
    """``out = (x - center * mean) / std * gain + bias``; the gain is ``weight``, or ``1 + weight`` (``plus_one``)."""

    center: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    plus_one: bool = False

    @property
    def gain(self) -> Tensor | None:
        """What multiplies, read now: weights may have moved or changed dtype since the survey."""
        if self.weight is None or not self.plus_one:
            return None if self.weight is None else self.weight.detach()
        weight = self.weight.detach()
        return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))


@dataclass(frozen=True)
class Site:
    """One module a rule can be attached to. ``module`` is the MLP for GATED."""

    kind: Kind
    name: str
    module: nn.Module
    spec: NormSpec | GatedSpec | GateSpec | ExpertsSpec | Mixer | StreamsSpec | None = None


def survey(decoder: nn.Module) -> list[Site]:
    """Every site of the decoder: its layers and its final norm.

    Raises:
        UnknownKindError: a module with parameters is of no known kind.
    """
    sites: list[Site] = []
    covered: set[int] = set()
    if (streams := streams_spec(decoder)) is not None:
        sites.append(Site(Kind.STREAMS, "streams", decoder, streams))
    for name, module in _parts(decoder):
        if id(module) in covered:
            continue
        for inner, router in routers(module):
            sites.append(Site(Kind.ROUTER, f"{name}.{inner}", router))
            covered.update(map(id, router.modules()))
        mixing = stream_router(module)
        if mixing is not None:
            sites.append(Site(Kind.ROUTER, f"{name}.{mixing[0]}", mixing[1]))
            covered.add(id(mixing[1]))
        if stacked(module) and (experts := experts_spec(module, activation_of(module))) is not None:
            sites.append(Site(Kind.EXPERTS, name, module, experts))
            covered.update(map(id, module.modules()))
            continue
        if (mixer := mixer_spec(name, module)) is not None:
            sites.append(Site(Kind.MIXER, name, module, mixer))
            covered.update(map(id, module.modules()))
            continue
        if is_attention(module):
            chooser = module._modules.get("indexer")
            if chooser is not None:  # sparse attention: which keys a query sees, as whole numbers
                sites.append(Site(Kind.SELECTION, f"{name}.indexer", chooser))
                covered.update(map(id, chooser.modules()))
            gate = _attention_gate(name, module)
            sites.append(Site(Kind.ATTENTION, name, module))
            if gate is not None:
                sites.append(Site(Kind.GATE, name, module, gate))
        elif is_linear(module):
            covered.update(id(m) for m in module.modules())
        elif is_leaf(module):
            site = _leaf_site(name, module)
            if site is not None:
                sites.append(site)
        spec = gated_spec(module)
        if spec is not None:
            sites.append(Site(Kind.GATED, name, module, spec))
        elif mixing is None:
            _check_container(name, module, covered)
    kinds = {s.kind for s in sites}
    missing = {Kind.NORM, Kind.ATTENTION} - kinds
    if missing:
        raise UnknownKindError(
            f"expected norms and attention in {type(decoder).__name__}, found {sorted(k.value for k in kinds)}",
            hint="run `limelight models --check` on this checkpoint",
        )
    return sites


_PROJECTIONS = frozenset(
    {
        "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa",
        "kv_b_proj", "query_key_value", "dense",
    }
)  # fmt: skip


def _attention_gate(name: str, module: Any) -> GateSpec | None:
    """Anything linear in attention beside its projections would go without a rule, save a gate of its output."""
    odd = [n for n, c in module.named_children() if is_linear(c) and n not in _PROJECTIONS]
    gate = gate_spec(module, odd)
    if gate is not None:
        return gate
    query, dim = getattr(module, "q_proj", None), getattr(module, "head_dim", None)
    out = getattr(module, "o_proj", None)
    if query is not None and out is not None and dim and int(query.out_features) != int(out.in_features):
        odd.append(f"q_proj of {query.out_features} for {out.in_features} channels")
    if odd:
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) is attention with {', '.join(odd)} beside q, k, v and the output",
            hint=HINT,
        )
    return None


def _parts(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that take part in a decoder forward: its layers and its direct leaf norms; embeddings and rotary left out."""
    for name, child in decoder.named_children():
        child = unwrapped(child)
        if isinstance(child, nn.Embedding) or _is_rotary(child) or is_positions(child):
            continue
        if name == "layers" or is_leaf(child):
            for inner, module in child.named_modules(prefix=name):
                if not _is_rotary(module):
                    yield inner, module


def _is_rotary(module: nn.Module) -> bool:
    return any("inv_freq" in n for n, _ in module.named_buffers(recurse=False))


def _leaf_site(name: str, module: nn.Module) -> Site | None:
    own = list(module.parameters(recurse=False))
    if isinstance(module, (nn.Dropout, nn.Identity)):
        return None
    if own and all(p.ndim == 1 for p in own) and takes_more(module):
        return Site(Kind.SCALE, name, module)
    if not own:
        verdict = elementwise(module)
        if verdict == "identity":
            return None
        if verdict == "activation":
            return Site(Kind.ACTIVATION, name, module)
    spec = probe_norm(module)
    if spec is not None:
        return Site(Kind.NORM, name, module, spec)
    shapes = [tuple(p.shape) for p in own]
    raise UnknownKindError(
        f"{name} ({type(module).__name__}, parameters {shapes}) is neither linear, norm nor elementwise activation",
        hint=HINT,
    )


def _check_container(name: str, module: nn.Module, covered: set[int]) -> None:
    """Parameters that sit directly on a container (stacked experts, scalars) have no rule."""
    if is_leaf(module) or is_attention(module) or is_linear(module):
        return
    loose = [(n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
    linears = [c for c in module.children() if is_linear(c) and id(c) not in covered]
    if loose or (len(linears) >= 2 and activation_of(module) is None):
        if not loose and side_branch(module):
            return
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) holds {loose or f'{len(linears)} linears without an activation module'}",
            hint=HINT,
        )


def probe_norm(module: nn.Module) -> NormSpec | None:
    """The spec that reproduces the module's output on a sample best, or None when none does."""
    weight, bias = (weight_of(module, name) for name in ("weight", "bias"))
    shapes = {tuple(p.shape) for p in module.parameters(recurse=False)}
    if any(not 0 < len(shape) < 3 for shape in shapes) or len(shapes) > 1:  # [heads, d]: a weight of each head's own
        return None
    dim = getattr(module, "dim", None)
    width = dim if isinstance(dim, int) and dim > 0 else 16
    last = tuple(weight.shape) if weight is not None else (width,)
    eps = next(
        (float(v) for n in ("variance_epsilon", "eps", "norm_eps") if isinstance(v := getattr(module, n, None), float)),
        1e-6,
    )
    x = sample((2, 3, *last), module) * 3 + 0.5
    try:
        with torch.no_grad():
            out = module(x)
    except REFUSALS:
        return None
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return None
    require_finite(module, out)
    found: dict[float, NormSpec] = {}
    for center in (False, True):
        base = x.float() - (x.float().mean(-1, keepdim=True) if center else 0)
        unit = base * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps)
        for plus_one in (False, True) if weight is not None else (False,):
            spec = NormSpec(center, weight, bias, eps, plus_one)
            want = unit if spec.gain is None else unit * spec.gain.float()
            want = want if bias is None else want + bias.detach().float()
            found.setdefault(apart(out, want), spec)
    best = min(found)
    return found[best] if best <= slack(out.dtype, 1e-4, 3e-2) else None
