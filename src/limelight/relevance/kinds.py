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

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.models.detect import is_attention
from limelight.models.offload import device_of, weight_of
from limelight.models.unwrapped import unwrapped
from limelight.relevance.experts import ExpertsSpec, experts_spec, routers, stacked
from limelight.relevance.gated_attention import GateSpec, gate_spec
from limelight.relevance.mixer_parts import Mixer
from limelight.relevance.mixers import mixer_spec
from limelight.relevance.scales import takes_more
from limelight.relevance.sparse_gate import kept, spread_of
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
class GatedSpec:
    """The linear after the gated product, and where the gate is: two linears, or one with both halves.

    ``factor``: the product's other factor is this argument of the layer itself (Gemma's per-layer inputs).
    ``spread``: only what stands out of the gate by so many deviations is kept (:mod:`limelight.relevance.sparse_gate`).
    """

    act: nn.Module
    down: nn.Module
    gate: nn.Module | None = None
    up: nn.Module | None = None
    fused: nn.Module | None = None
    factor: str = ""
    written: bool = False  # the MLP calls the activation as a function: no module of its own, ``act`` stands in
    spread: float | None = None


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
        if stacked(module) and (experts := experts_spec(module, _activation_of(module))) is not None:
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
        elif _is_leaf(module):
            site = _leaf_site(name, module)
            if site is not None:
                sites.append(site)
        spec = gated_spec(module)
        if spec is not None:
            sites.append(Site(Kind.GATED, name, module, spec))
        elif mixing is None:
            _check_container(name, module)
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
            hint="no relevance rule is known for it; GRADIENT_INPUT needs no rules, or add a kind in limelight/relevance/kinds.py",
        )
    return None


def _parts(decoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that take part in a decoder forward: its layers and its direct leaf norms; embeddings and rotary left out."""
    for name, child in decoder.named_children():
        child = unwrapped(child)
        if isinstance(child, nn.Embedding) or _is_rotary(child):
            continue
        if name == "layers" or _is_leaf(child):
            for inner, module in child.named_modules(prefix=name):
                if not _is_rotary(module):
                    yield inner, module


def _is_rotary(module: nn.Module) -> bool:
    return any("inv_freq" in n for n, _ in module.named_buffers(recurse=False))


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and not isinstance(module, (nn.ModuleList, nn.Sequential))


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, its quantised relatives and adapters around it (all state their in_features)."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def _leaf_site(name: str, module: nn.Module) -> Site | None:
    own = list(module.parameters(recurse=False))
    if isinstance(module, (nn.Dropout, nn.Identity)):
        return None
    if own and all(p.ndim == 1 for p in own) and takes_more(module):
        return Site(Kind.SCALE, name, module)
    if not own:
        verdict = _probe_elementwise(module)
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
        hint="no relevance rule is known for it; GRADIENT_INPUT needs no rules, or add a kind in limelight/relevance/kinds.py",
    )


def _check_container(name: str, module: nn.Module) -> None:
    """Parameters that sit directly on a container (stacked experts, scalars) have no rule."""
    if _is_leaf(module) or is_attention(module) or is_linear(module):
        return
    loose = [(n, tuple(p.shape)) for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
    linears = [c for c in module.children() if is_linear(c)]
    if loose or (len(linears) >= 2 and _activation_of(module) is None and not _has_act_function(module)):
        if not loose and side_branch(module):
            return
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) holds {loose or f'{len(linears)} linears without an activation module'}",
            hint="no relevance rule is known for it; GRADIENT_INPUT needs no rules, or add a kind in limelight/relevance/kinds.py",
        )


def _has_act_function(module: nn.Module) -> bool:
    return any(isinstance(c, nn.Module) and _is_leaf(c) and not list(c.parameters()) for c in module.children())


def _sample(shape: tuple[int, ...], module: nn.Module) -> Tensor:
    parameter = next(module.parameters(), None)
    device = device_of(module)
    dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else torch.float32
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def _probe_elementwise(module: nn.Module) -> str:
    x = _sample((1, 2, 8), module) * 2
    try:
        with torch.no_grad():
            whole, alone = module(x), module(x[..., 3:4])
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return "other"
    if not isinstance(whole, Tensor) or whole.shape != x.shape:
        return "other"
    slack = 1e-5 if whole.dtype in (torch.float32, torch.float64) else 2e-2  # vectorised kernels round differently
    if not torch.allclose(whole[..., 3:4], alone, rtol=slack, atol=slack):
        return "other"
    return "identity" if torch.equal(whole, x) else "activation"


def probe_norm(module: nn.Module) -> NormSpec | None:
    """The spec that reproduces the module's output on a sample, or None when none does."""
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
    x = _sample((2, 3, *last), module) * 3 + 0.5
    try:
        with torch.no_grad():
            out = module(x)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return None
    tolerance = 1e-4 if out.dtype in (torch.float32, torch.float64) else 3e-2
    for center in (False, True):
        base = x.float() - (x.float().mean(-1, keepdim=True) if center else 0)
        unit = base * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps)
        for plus_one in (False, True) if weight is not None else (False,):
            spec = NormSpec(center, weight, bias, eps, plus_one)
            want = unit if spec.gain is None else unit * spec.gain.float()
            want = want if bias is None else want + bias.detach().float()
            if float((want - out.float()).abs().max().detach()) <= tolerance * (1 + float(want.abs().max())):
                return spec
    return None


def _activation_of(module: nn.Module) -> nn.Module | None:
    for child in module.children():
        if _is_leaf(child) and not list(child.parameters()) and _probe_elementwise(child) == "activation":
            return child
    return None


def gated_spec(module: nn.Module) -> GatedSpec | None:
    """The gated product of an MLP, told by its widths: linears into 2 x what the last one reads."""
    linears: list[Any] = [c for c in module.children() if is_linear(c)]
    if len(linears) < 2 or is_attention(module):
        return None
    act = _activation_of(module)
    if act is None:
        return _written_gate(module, linears)
    factor = "per_layer_input"
    if len(linears) == 2 and factor in inspect.signature(type(module).forward).parameters:
        gate, down = linears
        return GatedSpec(act, down, gate=gate, factor=factor) if gate.out_features == down.in_features else None
    down = linears[-1]
    into = [c for c in linears[:-1] if c.in_features == down.out_features]
    width = int(down.in_features)
    if len(into) == 1 and into[0].out_features == 2 * width:
        return GatedSpec(act, down, fused=into[0])
    if len(into) == 2 and all(c.out_features == width for c in into):
        spread = spread_of(module)
        acts = act if spread is None else lambda z: act(kept(z, spread))
        gate, up = _which_gate(module, acts, down, into[0], into[1])
        return GatedSpec(act, down, gate=gate, up=up, spread=spread)
    return None


def _written_gate(module: nn.Module, linears: list[Any]) -> GatedSpec | None:
    """A gated MLP of three linears and nothing else, whose activation is a function in its forward."""
    if (
        len(linears) != 3
        or len(list(module.children())) != 3
        or next(module.parameters(recurse=False), None) is not None
    ):
        return None
    first, second, down = linears
    if {(c.in_features, c.out_features) for c in (first, second)} != {(down.out_features, down.in_features)}:
        return None
    for act in (nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ReLU()):
        try:
            gate, up = _which_gate(module, act, down, first, second)
        except UnknownKindError:
            continue
        return GatedSpec(act, down, gate=gate, up=up, written=True)
    return None


def _which_gate(
    module: nn.Module, act: Callable[[Tensor], Tensor], down: nn.Module, first: nn.Module, second: nn.Module
) -> tuple[nn.Module, nn.Module]:
    """Probe which of two linears goes through the activation."""
    sums = [0.0, 0.0]
    for size in (1.0, 100.0):  # clamped gates show themselves only where they are large
        x = _sample((1, 2, int(first.in_features)), first) * size  # type: ignore[arg-type]
        with torch.no_grad():
            out = module(x)
            out = out[0] if isinstance(out, tuple) else out
            a, b = first(x), second(x)
            errors = [float((down(act(g) * u) - out).abs().max()) for g, u in ((a, b), (b, a))]
        scale = 1 + float(out.abs().max())
        if min(errors) > (1e-3 if out.dtype in (torch.float32, torch.float64) else 5e-2) * scale:
            raise UnknownKindError(
                f"{type(module).__name__} looks like a gated MLP but does not compute down(act(gate) * up)",
                hint="no relevance rule is known for it; GRADIENT_INPUT needs no rules, or add a kind in limelight/relevance/kinds.py",
            )
        sums = [s + e / scale for s, e in zip(sums, errors, strict=True)]
    return (first, second) if sums[0] <= sums[1] else (second, first)
