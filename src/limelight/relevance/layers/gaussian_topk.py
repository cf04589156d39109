"""Gaussian top-k of a gated MLP: ``z = relu(g - mean(g) - k std(g))`` of a gate g (activation sparsity of Gemma 3n).

Told by :mod:`limelight.relevance.layers.gated_mlp`, whose gate it is.

The rule: which entries are kept, and ``u = (g - mean) / std``, are constants, as 1/std is one of a norm's. Then
``std(g) = mean(u (g - mean(g)))`` and z is linear in g, so that relevance is conserved; the gradient is that of z itself,
whose second order (of u) is left out. Nothing is divided by g: no entry near zero can blow up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance import rules
from limelight.relevance.kind import PutOn, hooked
from limelight.relevance.mode import Mode


def spread_of(module: nn.Module) -> float | None:
    """``k`` of an MLP: what share of a normal distribution's entries is to be dropped says how many deviations."""
    share: Any = getattr(module, "activation_sparsity", None)
    if not isinstance(share, float) or not 0.0 < share < 1.0:
        return None
    normal = torch.distributions.Normal(0.0, 1.0)
    return float(normal.icdf(torch.tensor(share, dtype=torch.float32)))  # type: ignore[no-untyped-call]


def kept(g: Tensor, spread: float) -> Tensor:
    """``z`` for ``g [..., D]``, in the operations and roundings of the model."""
    k = torch.tensor(spread, dtype=g.dtype, device=g.device)
    cutoff = torch.mean(g, dim=-1, keepdim=True) + torch.std(g, dim=-1, keepdim=True, unbiased=False) * k
    return torch.relu(g - cutoff)


def kept_jvp(g: Tensor, tangent: Tensor, value: Tensor, spread: float) -> Tensor:
    """``tangent [..., D]`` through ``kept`` at ``g``, whose result is ``value``; wide.

    ``g`` is taken as it comes: detach it where what depends on it is a constant.
    """
    wide = torch.promote_types(g.dtype, torch.float32)
    base, tangent = g.to(wide), tangent.to(wide)
    base = base - base.mean(-1, keepdim=True)
    tangent = tangent - tangent.mean(-1, keepdim=True)
    tiny = torch.finfo(wide).tiny
    unit = base * torch.rsqrt(base.pow(2).mean(-1, keepdim=True).clamp(min=tiny))
    k = float(torch.tensor(spread, dtype=g.dtype))
    return (tangent - k * (unit * tangent).mean(-1, keepdim=True)) * (value.detach() > 0)


def kept_blocks(mode: Mode, g: Tensor, spread: float) -> Tensor:
    """:func:`kept` of block 0 and the tangents of the others, ``[1 + C, ..., D]``."""
    value = kept(g[0], spread)
    base = mode.const(g[0])
    if mode.graph == "surrogate":
        first = rules.gradient_of(kept_jvp(base, g[0], value, spread).to(g.dtype), value)
    else:
        first = value
    return torch.cat([first[None], kept_jvp(base, g[1:], value, spread).to(g.dtype)])


def keeping(gate: nn.Module, act: nn.Module, spread: float) -> PutOn:
    """The rule for a backward pass on an MLP whose ``act`` gets what is kept of the output of ``gate``."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen[:] = [output]

    def bend(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not seen:  # run alone, as a probe does
            return args
        g, value = seen.pop(), args[0]
        if not g.requires_grad:
            return args
        ruled = kept_jvp(g.detach(), g, value, spread)
        return (rules.gradient_of(ruled.to(value.dtype), value), *args[1:])

    return hooked(lambda: gate.register_forward_hook(keep), lambda: act.register_forward_pre_hook(bend))
