"""What the mixers share: their interface, the causal convolution, an activation and a product over blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from limelight.relevance import rules
from limelight.relevance.dual_mode import Mode, block_rows, blocks

Divisors = tuple[int, int, int]
State = tuple[Tensor, ...]
CHUNK = 64


@runtime_checkable
class Mixer(Protocol):
    """A token mixer over blocks of rows.

    Attributes:
        kind: in words.
        width: channels of its input.
    """

    @property
    def kind(self) -> str: ...

    @property
    def width(self) -> int: ...

    def run(
        self, mode: Mode, x: Tensor, state: State | None, divisors: Divisors, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, State]]:
        """``x`` [(1 + C) * B, N, D] (``mask`` [(1 + C) * B, N]: 0 at padding) behind ``state`` -> the output, and the states after N - 1 and N positions.

        ``divisors``: of the gradient through what queries, keys and values are here (:class:`Composite`).
        """
        ...


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` [rows, N, D] with zeros at padding."""
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    from transformers.activations import ACT2FN

    act: Callable[[Tensor], Tensor] = ACT2FN[name]
    return act


def convolved(mode: Mode, conv: Any, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Depthwise causal convolution of ``x`` [rows, C, N] behind ``tail`` [rows, C, K - 1]; its bias on block 0 only.

    Returns the output and the tails after N - 1 and N positions.
    """
    weight = conv.weight.to(torch.promote_types(conv.weight.dtype, x.dtype))
    reach = int(weight.shape[-1]) - 1
    before = x.new_zeros(*x.shape[:2], reach) if tail is None else tail.to(x.dtype)
    joined = torch.cat([before, x], dim=-1)
    out = functional.conv1d(joined.to(weight.dtype), weight, groups=weight.shape[0]).to(x.dtype)
    if conv.bias is not None:
        b = block_rows(out, mode.channels)
        out = torch.cat([out[:b] + conv.bias[:, None].to(out.dtype), out[b:]])
    n = x.shape[-1]
    return out, joined.narrow(-1, n - 1, reach), joined.narrow(-1, n, reach)


def activated(mode: Mode, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The identity rule of an activation over blocks ``[rows, ...]``."""
    z = blocks(x, mode.channels)
    value = act(z[0])
    slope = mode.slope(z[0], value).to(z.dtype)
    first = rules.gradient_of(z[0] * slope, value) if mode.graph == "surrogate" else value
    return torch.cat([first[None], z[1:] * slope]).reshape(x.shape)


def product(mode: Mode, a: Tensor, b: Tensor) -> Tensor:
    """``[a b, (a' b + a b') / 2]`` of blocks ``[1 + C, ...]``: each factor of a product gets half."""
    first = mode.shared(a[0] * b[0], 2)
    return torch.cat([first[None], (a[1:] * b[0] + a[0] * b[1:]) / 2])


def normed(mode: Mode, x: Tensor, eps: float, groups: int = 1) -> Tensor:
    """RMS norm of blocks ``[1 + C, ..., d]`` in so many groups of d, without its weight; 1/rms of block 0 is a constant."""
    y = x.reshape(*x.shape[:-1], groups, -1)
    scale = mode.const(torch.rsqrt(y[0].pow(2).mean(-1, keepdim=True) + eps))
    return (y * scale).reshape(x.shape)


def norm_eps(norm: Any) -> float:
    """transformers' norms call it ``variance_epsilon``, the fused ones of flash-linear-attention ``eps``."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def decays(g: Tensor) -> Tensor:
    """``exp(g_{j+1} + ... + g_i)`` for j <= i, else 0: ``[..., N]`` -> ``[..., N, N]``."""
    total = g.cumsum(-1)
    n = g.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=g.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()


def pieces(n: int) -> list[slice]:
    """Chunks of a sequence: within one, positions are computed in parallel, in memory that is quadratic in its size."""
    return [slice(at, min(at + CHUNK, n)) for at in range(0, n, CHUNK)]
