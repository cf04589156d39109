"""Norms, told by probing: a sample must come out as RMSNorm or LayerNorm makes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limelight.models.runtime.offload import weight_of
from limelight.relevance.probing import REFUSALS, apart, require_finite, sample, slack


@dataclass(frozen=True)
class NormSpec:
    """``out = (x - center * mean) / std * gain + bias``; the gain is ``weight``, or ``1 + weight`` (``plus_one``).

    ``first``: the weight scales what comes in instead (:attr:`intake`), before it is normalised (Muse Spark).
    """

    center: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    plus_one: bool = False
    first: bool = False

    @property
    def gain(self) -> Tensor | None:
        """What multiplies what is normalised, read now: weights may have moved or changed dtype since the survey."""
        return None if self.first else self._scale

    @property
    def intake(self) -> Tensor | None:
        """What multiplies the input, read now."""
        return self._scale if self.first else None

    @property
    def _scale(self) -> Tensor | None:
        if self.weight is None or not self.plus_one:
            return None if self.weight is None else self.weight.detach()
        weight = self.weight.detach()
        return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))

    def through(self, x: Tensor, base: Tensor) -> Tensor:
        """``x`` through the norm with the std of ``base``, no bias; wide. Without a centre.

        ``base`` is taken as it comes: detach it where 1/std is a constant.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        x, base = x.to(wide), base.to(wide)
        if (intake := self.intake) is not None:
            x, base = x * intake.to(x.device, wide), base * intake.to(x.device, wide)
        out = x * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + self.eps)
        return out if self.gain is None else out * self.gain.to(out.device, wide)


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
    ways = [(p, f) for f in (False, True) for p in (False, True)] if weight is not None else [(False, False)]
    for center in (False, True):
        for plus_one, first in ways:
            spec = NormSpec(center, weight, bias, eps, plus_one, first)
            base = x.float() if spec.intake is None else x.float() * spec.intake.float()
            base = base - (base.mean(-1, keepdim=True) if center else 0)
            unit = base * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + eps)
            want = unit if spec.gain is None else unit * spec.gain.float()
            want = want if bias is None else want + bias.detach().float()
            found.setdefault(apart(out, want), spec)
    best = min(found)
    return found[best] if best <= slack(out.dtype, 1e-4, 3e-2) else None
