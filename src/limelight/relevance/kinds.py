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

from torch import nn

from limelight.errors import UnknownKindError
from limelight.models.detect import is_attention
from limelight.models.inputs.position_mask import is_positions
from limelight.models.runtime.wrappers import unwrapped
from limelight.relevance.experts import ExpertsSpec, experts_spec, routers, stacked
from limelight.relevance.gated import GatedSpec, gated_spec
from limelight.relevance.gated_attention import GateSpec, gate_spec
from limelight.relevance.glue import linear_around
from limelight.relevance.mixer_parts import Mixer
from limelight.relevance.mixers import mixer_spec
from limelight.relevance.norms import NormSpec, probe_norm
from limelight.relevance.probing import (
    HINT,
    activation_of,
    elementwise,
    is_leaf,
    is_linear,
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
        if not loose and (side_branch(module) or linear_around(module, covered)):
            return
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) holds {loose or f'{len(linears)} linears without an activation module'}",
            hint=HINT,
        )
