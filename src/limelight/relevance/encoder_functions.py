"""Nonlinear functions that an encoder calls itself, outside of modules with a rule: the same rules, or an error.

    activations   the identity rule of activation modules (AttnLRP, section 3.3.1)
    glu           its sigmoid gate is a constant, like all sigmoid gates
    attention     written out in the module instead of calling transformers' attention interface (Swin, SAM): each product of
                  two signals is halved (AttnLRP, proposition 3.3), or the weights are constants (CP-LRP)

Everything else that is not linear raises an error that names the module, so that no rule is ever silently missing; clamping
(linear where it changes nothing) and the products of gated MLPs (:mod:`limelight.relevance.layers.gated_mlp`) aside.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from limelight.errors import UnsupportedError
from limelight.relevance import rules
from limelight.relevance.mode import Divisors

INSTEAD = "leave the encoder out: attribute() without through_encoder ends at the embeddings"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# By name, as torch, torch.Tensor and torch.nn.functional have most of them. Float16 encoders clamp against overflow only.
_ACTIVATIONS = _names("gelu silu relu relu6 leaky_relu elu selu celu mish hardswish hardtanh tanh asinh arcsinh")
_ELEMENTWISE = _names(
    "sigmoid expit logit logsigmoid log_sigmoid hardsigmoid softplus softsign softshrink hardshrink tanhshrink threshold "
    "prelu rrelu exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square pow rpow float_power reciprocal rdiv rtruediv abs "
    "absolute erf erfc erfinv sin cos tan asin acos atan atan2 sinh cosh acosh atanh arcsin arccos arctan arctan2 arccosh "
    "arctanh sinc"
)
_JOINT = _names(
    "log_softmax softmin gumbel_softmax logsumexp layer_norm native_layer_norm rms_norm group_norm native_group_norm "
    "instance_norm local_response_norm normalize norm vector_norm matrix_norm var var_mean std std_mean prod cumprod "
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d max "
    "amax min amin aminmax maximum minimum fmax fmin cosine_similarity pairwise_distance cdist dist addcdiv "
    "scaled_dot_product_attention multi_head_attention_forward"
)
_MATMUL = _names("matmul rmatmul bmm mm einsum")
_PRODUCTS = _MATMUL | _names(
    "mul multiply imul mv dot vdot inner outer ger addmm addmv addbmm baddbmm addr tensordot chain_matmul multi_dot kron "
    "cross addcmul bilinear linear conv1d conv2d conv3d grid_sample"
)
_QUOTIENTS = _names("div divide true_divide truediv itruediv")


class FunctionRules(TorchFunctionMode):
    """Gives the functions called inside the block their rules.

    Args:
        divisors: the composite's, of the gradient through queries, keys and values.
        gated: the modules, as in ``inside``, whose own products have a rule (gated MLPs).

    Attributes:
        inside: the modules that are running, outermost first, as ``name (type)``.
        attending: the attention modules among them.
        routed: whether limelight's attention function is running, which has rules of its own.
        attended, ruled: the attention modules that have run; those whose softmax got its rule.
    """

    def __init__(self, divisors: Divisors, gated: Container[str] = ()) -> None:
        super().__init__()
        self.divisors, self.gated = divisors, gated
        self.inside: list[str] = []
        self.attending: list[str] = []
        self.routed = False
        self.attended: set[str] = set()
        self.ruled: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or self.routed:
            return func(*args, **kwargs)
        name, in_place = _name_of(func)
        attention = bool(self.attending) and name == "softmax"
        if attention:
            self.ruled.update(self.attending)
        live = [x for x in _flat(args, kwargs) if isinstance(x, Tensor) and x.requires_grad]
        if not live:
            return func(*args, **kwargs)
        in_place = in_place or bool(kwargs.get("inplace")) or any(x is True for x in args[1:])
        if name in _ACTIVATIONS and not in_place:
            return _activated(func, args, kwargs)
        if name == "glu":
            return _gated(*args, **kwargs)
        if attention:
            weights = func(*args, **kwargs)
            return weights if self.divisors[0] else weights.detach()
        if self.attending and name in _MATMUL and len(live) > 1:
            return func(*map(self._halved, args), **{k: self._halved(x) for k, x in kwargs.items()})
        curved = name in _ACTIVATIONS or name == "softmax" or name in _ELEMENTWISE or name in _JOINT
        divided = name in _QUOTIENTS and any(_is_live(x) for x in (*args[1:], *kwargs.values()))
        product = name in _PRODUCTS and len(live) > 1 and not (self.inside and self.inside[-1] in self.gated)
        by_batch = name == "batch_norm" and bool(kwargs.get("training", args[5] if len(args) > 5 else False))
        if curved or divided or product or by_batch:
            where = self.inside[-1] if self.inside else "the model itself"
            raise UnsupportedError(f"{where} computes {name} as a function, for which there is no rule", hint=INSTEAD)
        return func(*args, **kwargs)

    def _halved(self, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(self._halved, x))
        return rules.divided(x, self.divisors[2]) if _is_live(x) and self.divisors[0] > 0 else x


def _name_of(func: Any) -> tuple[str, bool]:
    """The name of a function without its namespace (``special_expit`` is ``expit``), and whether it works in place."""
    own = str(getattr(func, "__name__", func))
    name = own.strip("_")
    for namespace in ("special_", "linalg_"):
        name = name.removeprefix(namespace)
    return name, own.endswith("_") and not own.endswith("__")


def _is_live(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments, and those of einsum and cat that are in a list."""
    return [y for x in (*args, *kwargs.values()) for y in (x if isinstance(x, (list, tuple)) else (x,))]


def _activated(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x = kwargs["input"] if "input" in kwargs else args[0]
    with torch.no_grad():
        value = func(*args, **kwargs)
    return rules.identity(x, value).clone()  # a view could not be changed in place, as some encoders do


def _gated(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = functional.glu(input.detach(), dim), input.detach().chunk(2, dim)[1].sigmoid()
    return rules.gradient_of(input.chunk(2, dim)[0] * gate, value).clone()
