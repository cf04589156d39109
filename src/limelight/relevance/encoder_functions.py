"""Nonlinear functions that an encoder calls itself, outside of modules with a rule: the same rules, or an error.

    activations   the identity rule of activation modules (AttnLRP, section 3.3.1)
    glu           its sigmoid gate is a constant, like all sigmoid gates
    attention     written out in the module instead of calling transformers' attention interface (Swin, SAM): each product of
                  two signals is halved (AttnLRP, proposition 3.3), or the weights are constants (CP-LRP)

Everything else that is not linear raises an error that names the module, so that no rule is ever silently missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from limelight.errors import UnsupportedError
from limelight.relevance import rules
from limelight.relevance.mode import Divisors

INSTEAD = "leave the encoder out: attribute() without through_encoder ends at the embeddings"

_ACTIVATIONS = {
    *(functional.gelu, functional.silu, functional.relu, functional.leaky_relu, functional.elu, functional.selu),
    *(functional.mish, functional.hardswish, torch.relu, torch.tanh, torch.asinh),
    *(torch.Tensor.relu, torch.Tensor.tanh, torch.Tensor.asinh),
}
_SOFTMAX = {functional.softmax, torch.softmax, torch.Tensor.softmax}
_CURVED = {
    *(functional.layer_norm, functional.rms_norm, functional.group_norm, functional.normalize),
    *(functional.sigmoid, functional.softplus, functional.scaled_dot_product_attention, functional.log_softmax),
    *(torch.sigmoid, torch.exp, torch.rsqrt, torch.sqrt, torch.erf, torch.sin, torch.cos, torch.log),
    *(torch.Tensor.sigmoid, torch.Tensor.exp, torch.Tensor.rsqrt, torch.Tensor.sqrt, torch.Tensor.pow, torch.pow),
    *(torch.Tensor.__pow__, torch.Tensor.relu_, torch.relu_),
}
_MATMUL = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm, torch.einsum}
_PRODUCTS = _MATMUL | {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.mul_, torch.Tensor.__imul__}
_QUOTIENTS = {torch.div, torch.Tensor.div, torch.Tensor.__truediv__}


class FunctionRules(TorchFunctionMode):
    """Gives the functions called inside the block their rules.

    Args:
        divisors: the composite's, of the gradient through queries, keys and values.
        routed: whether limelight's attention function is running, which has rules of its own.

    Attributes:
        inside: names of the modules that are running, outermost first.
        attending: number of attention modules among them.
        softmaxes: number of softmaxes of attention modules that got their rule.
    """

    def __init__(self, divisors: Divisors, routed: Callable[[], bool]) -> None:
        super().__init__()
        self.divisors, self.routed = divisors, routed
        self.inside: list[str] = []
        self.attending = self.softmaxes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or self.routed():
            return func(*args, **kwargs)
        live = [x for x in _flat(args, kwargs) if isinstance(x, Tensor) and x.requires_grad]
        if not live:
            return func(*args, **kwargs)
        if func in _ACTIVATIONS and not kwargs.get("inplace"):
            return _activated(func, args, kwargs)
        if func is functional.glu:
            return _gated(*args, **kwargs)
        if self.attending and func in _SOFTMAX:
            self.softmaxes += 1
            weights = func(*args, **kwargs)
            return weights if self.divisors[0] else weights.detach()
        if self.attending and func in _MATMUL and len(live) > 1:
            return func(*(self._halved(x) for x in args), **kwargs)
        divided = func in _QUOTIENTS and len(args) > 1 and isinstance(args[1], Tensor) and args[1].requires_grad
        curved = func in _ACTIVATIONS or func in _SOFTMAX or func in _CURVED
        if curved or divided or (func in _PRODUCTS and len(live) > 1):
            where = self.inside[-1] if self.inside else "the model itself"
            raise UnsupportedError(
                f"{where} computes {getattr(func, '__name__', func)} as a function, for which there is no rule",
                hint=INSTEAD,
            )
        return func(*args, **kwargs)

    def _halved(self, x: Any) -> Any:
        live = isinstance(x, Tensor) and x.requires_grad and self.divisors[0] > 0
        return rules.divided(x, self.divisors[2]) if live else x


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments, and those of einsum and cat that are in a list."""
    return [y for x in (*args, *kwargs.values()) for y in (x if isinstance(x, (list, tuple)) else (x,))]


def _activated(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    names = [k for k in ("input",) if k in kwargs]
    x = kwargs[names[0]] if names else args[0]
    with torch.no_grad():
        value = func(*args, **kwargs)
    return rules.identity(x, value).clone()  # a view could not be changed in place, as some encoders do


def _gated(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = functional.glu(input.detach(), dim), input.detach().chunk(2, dim)[1].sigmoid()
    return rules.gradient_of(input.chunk(2, dim)[0] * gate, value).clone()
