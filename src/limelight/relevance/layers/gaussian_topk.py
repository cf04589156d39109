"""Gaussian top-k of a gated MLP: ``z = relu(g - mean(g) - k std(g))`` of a gate g (activation sparsity of Gemma 3n).

Recognised by :mod:`limelight.relevance.layers.gated_mlp`, whose gate it is part of.

Rule: the set of kept entries and ``u = (g - mean) / std`` are constants, like 1/std of a norm. Then
``std(g) = mean(u (g - mean(g)))`` and z is linear in g, so relevance is conserved; the gradient is that of z itself,
without the second-order term (of u). There is no division by g, so entries near zero are stable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight.relevance import rules
from limelight.relevance.kind import Attach, hooked
from limelight.relevance.mode import Mode


def deviations_of(module: nn.Module) -> float | None:
    """Return ``k`` of an MLP: the normal quantile of the fraction of entries to drop, or None."""
    share: Any = getattr(module, "activation_sparsity", None)
    if not isinstance(share, float) or not 0.0 < share < 1.0:
        return None
    normal = torch.distributions.Normal(0.0, 1.0)
    return float(normal.icdf(torch.tensor(share, dtype=torch.float32)))  # type: ignore[no-untyped-call]


def kept(g: Tensor, deviations: float) -> Tensor:
    """Compute ``z`` for ``g [..., D]`` with the model's operations and rounding."""
    k = torch.tensor(deviations, dtype=g.dtype, device=g.device)
    cutoff = torch.mean(g, dim=-1, keepdim=True) + torch.std(g, dim=-1, keepdim=True, unbiased=False) * k
    return torch.relu(g - cutoff)


def kept_jvp(g: Tensor, tangent: Tensor, value: Tensor, deviations: float) -> Tensor:
    """Propagate ``tangent [..., D]`` through ``kept`` at ``g``, whose result is ``value``; wide.

    ``g`` is not detached here: detach it where the coefficients are constants.
    """
    wide = torch.promote_types(g.dtype, torch.float32)
    base, tangent = g.to(wide), tangent.to(wide)
    base = base - base.mean(-1, keepdim=True)
    tangent = tangent - tangent.mean(-1, keepdim=True)
    tiny = torch.finfo(wide).tiny
    unit = base * torch.rsqrt(base.pow(2).mean(-1, keepdim=True).clamp(min=tiny))
    k = float(torch.tensor(deviations, dtype=g.dtype))
    return (tangent - k * (unit * tangent).mean(-1, keepdim=True)) * (value.detach() > 0)


def kept_blocks(mode: Mode, g: Tensor, deviations: float) -> Tensor:
    """Return :func:`kept` of block 0 and the tangents of the other blocks, ``[1 + C, ..., D]``."""
    value = kept(g[0], deviations)
    base = mode.const(g[0])
    if mode.graph == "surrogate":
        first = rules.gradient_of(kept_jvp(base, g[0], value, deviations).to(g.dtype), value)
    else:
        first = value
    return torch.cat([first[None], kept_jvp(base, g[1:], value, deviations).to(g.dtype)])


def keeping(gate: nn.Module, act: nn.Module, deviations: float) -> Attach:
    """Return the backward rule for an MLP whose ``act`` gets the kept part of the output of ``gate``."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen[:] = [output]

    def bend(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not seen:  # called alone, as in probing
            return args
        g, value = seen.pop(), args[0]
        if not g.requires_grad:
            return args
        ruled = kept_jvp(g.detach(), g, value, deviations)
        return (rules.gradient_of(ruled.to(value.dtype), value), *args[1:])

    return hooked(lambda: gate.register_forward_hook(keep), lambda: act.register_forward_pre_hook(bend))
