"""Residual additions ``out = x + branch(x)``, told by the residual stream itself as a layer adds to it.

Their plain rule is that of a sum: each summand gets relevance in proportion to its part, which is the plain gradient. ResLRP
(:func:`agreeing`) weighs the summands that agree with the sum's sign:

    R_b = m_b / sum_b m_b * R_out,    m_b = (1 + gamma [sign b = sign out]) b

As a modified gradient that is ``out -> f_x x + f_z z`` with the constants ``f_b = (1 + gamma [...]) out / sum m``: linear in
the relevance, conserving (``f_x x + f_z z = out``), and the same for tangents. ``f`` lies between 0 and 1 + gamma; where
both summands agree it is 1, as it is where the sum is exactly 0.

Source: the gamma rule of Montavon et al., "Layer-Wise Relevance Propagation: An Overview" (2019), on residual additions, as
ResLRP has it (gamma 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limelight.errors import UnknownKindError
from limelight.models.runtime.wrappers import unwrapped
from limelight.relevance import rules
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, Rule, replaced
from limelight.relevance.mode import Mode, blocks
from limelight.relevance.probing import HINT

GAMMA = 1.0
_IN_PLACE = {torch.Tensor.add_, torch.Tensor.__iadd__}
_ADDS = {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__} | _IN_PLACE


def factors(x: Tensor, z: Tensor, out: Tensor, gamma: float = GAMMA) -> tuple[Tensor, Tensor]:
    """What the relevance (per unit) of ``out = x + z`` is multiplied by on its way to ``x`` and to ``z``; float32 or wider."""
    wide = torch.promote_types(out.dtype, torch.float32)
    x, z, out = x.to(wide), z.to(wide), out.to(wide)
    to_x, to_z = (1 + gamma * (b * out >= 0).to(wide) for b in (x, z))
    whole = to_x * x + to_z * z
    gone = whole == 0
    ratio = torch.where(gone, torch.ones_like(out), out / whole.masked_fill(gone, 1.0))
    return torch.where(gone, ratio, to_x * ratio), torch.where(gone, ratio, to_z * ratio)


class _Additions(TorchFunctionMode):
    """Inside a layer's forward: additions to the residual stream go by the rule. The stream is what enters the layer, and
    every sum with it."""

    def __init__(self, hidden: Tensor, mode: Mode, gamma: float) -> None:
        super().__init__()
        self.stream, self.mode, self.gamma, self.count = [hidden], mode, gamma, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ADDS and self._residual(args):
            out = self._added(args[0], args[1], kwargs.get("alpha", 1))
            if func in _IN_PLACE:
                out = args[0].copy_(out)
            self.stream.append(out)
            self.count += 1
            return out
        return func(*args, **kwargs)

    def _residual(self, args: tuple[Any, ...]) -> bool:
        if len(args) < 2 or not all(isinstance(x, Tensor) for x in args[:2]) or args[0].shape != args[1].shape:
            return False
        return any(x is s for x in args[:2] for s in self.stream)

    def _added(self, x: Tensor, z: Tensor, alpha: float) -> Tensor:
        mode = self.mode
        z = z if alpha == 1 else z * alpha
        if mode.channels == 1:
            value = mode.value(torch.add, x, z)
            fx, fz = factors(x.detach(), z.detach(), value.detach(), self.gamma)
            return rules.gradient_of((x * fx + z * fz).to(value.dtype), value)
        a, b = blocks(x, mode.channels), blocks(z, mode.channels)
        first = a[0] + b[0]
        fa, fb = factors(mode.const(a[0]), mode.const(b[0]), mode.const(first), self.gamma)
        if mode.graph == "surrogate":
            first = rules.gradient_of((a[0] * fa + b[0] * fb).to(first.dtype), first)
        return torch.cat([first[None], (a[1:] * fa + b[1:] * fb).to(first.dtype)]).reshape(x.shape)


def agreeing(gamma: float = GAMMA) -> Rule:
    """ResLRP's rule for layers."""

    def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
        yield replaced(match.module, _watched(match, mode, gamma))

    return run


def _watched(match: ModuleMatch, mode: Mode, gamma: float) -> Callable[..., Any]:
    original = match.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor) or hidden.ndim not in (2, 3):
            raise UnknownKindError(
                f"{match.name} ({type(match.module).__name__}) does not take one residual stream [batch, positions, width]",
                hint="use attnlrp or cp-lrp, which leave residual additions alone",
            )
        if mode.plain(hidden):
            return original(*args, **kwargs)
        with _Additions(hidden, mode, gamma) as additions:
            out = original(*args, **kwargs)
        if not additions.count:
            raise UnknownKindError(
                f"{match.name} ({type(match.module).__name__}) adds nothing to what enters it: its residual additions "
                "could not be found",
                hint=f"use attnlrp or cp-lrp, which leave residual additions alone; {HINT}",
            )
        return out

    return forward


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    """Every layer of a decoder."""
    for index, layer in enumerate(module.layers):  # type: ignore[arg-type]
        yield ModuleMatch("residual", f"layers.{index}", unwrapped(layer))


KIND = LayerKind("residual", recognise, of_decoder=True)
