"""Norms: ``out = (x - center * mean) / std * gain + bias``, recognised by probing.

Rule: 1/std is a constant (AttnLRP, proposition 3.4). Tangents use block 0's; a bias enters block 0 alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import HookError
from limelight.models.adapter import Adapter
from limelight.models.runtime.offload import weight_of
from limelight.models.runtime.wrappers import unwrapped
from limelight.relevance import rules
from limelight.relevance.forward.fused import root_mean_square
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode, block_rows, blocks
from limelight.relevance.probing import answer, is_leaf, relative_error, require_finite, sample, tolerance


@dataclass(frozen=True)
class NormSpec:
    """The form of a norm, ``out = (x - center * mean) / std * gain + bias``, gain ``weight`` or ``1 + weight`` (``plus_one``).

    ``first``: the weight scales the input instead (:attr:`intake`), before normalisation (Muse Spark).
    """

    center: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    plus_one: bool = False
    first: bool = False

    @property
    def gain(self) -> Tensor | None:
        """The factor after normalisation, read on access: weights may have moved or changed dtype since recognition."""
        return None if self.first else self._scale

    @property
    def intake(self) -> Tensor | None:
        """The factor on the input, read on access."""
        return self._scale if self.first else None

    @property
    def _scale(self) -> Tensor | None:
        if self.weight is None or not self.plus_one:
            return None if self.weight is None else self.weight.detach()
        weight = self.weight.detach()
        return 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))

    def read(self) -> NormSpec:
        """Return the spec with its gain precomputed; valid until the weights change."""
        return replace(self, weight=self._scale, plus_one=False)

    def through(self, x: Tensor, base: Tensor) -> Tensor:
        """Apply the norm to ``x`` [..., D] with the std of ``base``, without bias; float32 or wider.

        ``base`` is not detached here: detach it where 1/std is a constant.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        x, base = x.to(wide), base.to(wide)
        if (intake := self.intake) is not None:
            x, base = x * intake.to(x.device, wide), base * intake.to(x.device, wide)
        if self.center:
            x, base = x - x.mean(-1, keepdim=True), base - base.mean(-1, keepdim=True)
        out = x * torch.rsqrt(base.pow(2).mean(-1, keepdim=True) + self.eps)
        if (gain := self.gain) is None:
            return out
        gain = gain.to(out.device, wide)
        return out * gain if out.requires_grad else out.mul_(gain)


def probe_norm(module: nn.Module) -> NormSpec | None:
    """Return the spec that best reproduces the module's output on a sample, or None if none does."""
    weight, bias = (weight_of(module, name) for name in ("weight", "bias"))
    shapes = {tuple(p.shape) for p in module.parameters(recurse=False)}
    if any(not 0 < len(shape) < 3 for shape in shapes) or len(shapes) > 1:  # [heads, d]: one weight per head
        return None
    shape = getattr(module, "normalized_shape", None) or getattr(module, "dim", None)
    dim = shape[-1] if isinstance(shape, (tuple, list)) else shape
    width = dim if isinstance(dim, int) and dim > 0 else 16
    last = tuple(weight.shape) if weight is not None else (width,)
    eps = next(
        (float(v) for n in ("variance_epsilon", "eps", "norm_eps") if isinstance(v := getattr(module, n, None), float)),
        1e-6,
    )
    x = sample((2, 3, *last), module) * 3 + 0.5
    out = answer(module, x)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return None
    require_finite(module, out)
    found: dict[float, NormSpec] = {}
    ways = [(p, f) for f in (False, True) for p in (False, True)] if weight is not None else [(False, False)]
    for center in (False, True):
        for plus_one, first in ways:
            spec = NormSpec(center, weight, bias, eps, plus_one, first)
            want = spec.through(x, x)
            want = want if bias is None else want + bias.detach().to(want)
            found.setdefault(relative_error(out, want), spec)
    best = min(found)
    return found[best] if best <= tolerance(out.dtype, 1e-4, 3e-2) else None


def final_norm(adapter: Adapter) -> nn.Module:
    """Return the norm between the last layer and the head.

    Raises:
        HookError: the decoder has no norm of a known kind there.
    """
    found = [
        child
        for name, child in ((n, unwrapped(c)) for n, c in adapter.decoder.named_children())
        if not isinstance(child, (nn.ModuleList, nn.Embedding)) and "emb" not in name and probe_norm(child) is not None
    ]
    width = adapter.traits.hidden
    fitting: list[nn.Module] = [m for m in found if all(p.shape[0] == width for p in m.parameters())]
    if len(fitting) != 1:
        raise HookError(
            f"expected one final norm among the children of {type(adapter.decoder).__name__}, found {len(fitting)}",
            hint="run `limelight models --check` on this checkpoint",
        )
    return fitting[0]


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if is_leaf(module) and (spec := probe_norm(module)) is not None:
        yield ModuleMatch("norm", name, module, spec)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    spec: NormSpec = match.spec.read()
    original = match.module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if mode.plain(x):
            return original(x, *args, **kwargs)  # type: ignore[no-any-return]
        if mode.backward:
            value = mode.value(original, x, *args, **kwargs)
            x = x.to(value.device)  # accelerate may run the module elsewhere
            if spec.intake is not None:
                x = x * spec.intake.to(x)
            return rules.frozen_norm(x, value, gain=spec.gain, center=spec.center, eps=spec.eps)
        y = blocks(x, mode.channels)
        if mode.graph == "true" and x.dtype is torch.float32 and not spec.center and spec.bias is None:
            y = y if spec.intake is None else y * spec.intake.to(y)
            known = None if spec.gain is None else spec.gain.to(y)
            return root_mean_square(y, known, spec.eps).reshape(x.shape)
        y = spec.through(y, mode.const(y[0]))
        if spec.bias is not None:
            y = torch.cat([y[:1] + spec.bias.to(y), y[1:]])
        if x.dtype is not torch.float32:  # the model's own roundings (in float64 its norms still compute in float32)
            value = original(x[: block_rows(x, mode.channels)]).detach()[None].to(y)
            y = torch.cat([rules.gradient_of(y[:1], value) if mode.graph != "none" else value, y[1:]])
        return y.reshape(x.shape).to(x.dtype)

    yield replaced(match.module, forward)


KIND = LayerKind("norm", recognise, run, order=40)
