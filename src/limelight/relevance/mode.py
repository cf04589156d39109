"""Settings of one run of the rules: direction, row blocks (the model and its tangents), and which factors are constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.relevance import rules

if TYPE_CHECKING:
    from limelight.relevance.forward.cache import DualCache

FALLBACK = "use exact mode (lime(), attribute()), which needs no forward mode"
GPU_SCORES = 2**27  # attention scores in memory at a time during a GPU prefill: 256 MiB in 16 bits
NEAR_ZERO = 1e-6  # below it, d/dz of f(z) / (z + 1e-10) is an artefact of the 1e-10
Divisors = tuple[int, int, int]


class Offsets(Protocol):
    """Offsets for the current query (cache scope). Shapes: B rows, Hkv kv heads, G query heads per kv head, Q = 1."""

    def scores(self, layer: int, q: Tensor) -> Tensor | None:
        """Compute ``q dK^T`` for q ``[B, Hkv, R, d]`` -> ``[B, Hkv, R, T]`` (R queries: channels x heads per group)."""
        ...

    def out(self, layer: int, weights: Tensor) -> Tensor | None:
        """Compute ``A dV`` for weights ``[B, Hkv, R, T]`` -> ``[B, Hkv, R, d]``."""
        ...


@dataclass
class Mode:
    """Settings of one run of the rules. Mutable, because the rules attached to a model read it.

    Attributes:
        batch: rows of block 0.
        channels: number of blocks in the current forward, 1 + C (1: the model alone).
        graph: ``none``, ``surrogate`` (constants stay constants and the factors are applied again to block 0, as in the
            authors' second-order pass) or ``true`` (the gradient of the value).
        backward: rules for a backward pass: block 0 only, with bit-identical values.
        divisors: of the gradient through queries, keys and values; 0 stops it, 1 leaves it unchanged.
        cache: keys, values and states of a forward-mode stream.
        write: store the new keys and values as they are computed.
        tap: if set, called with (layer, raw scores, weights, q, out) of the current token.
        block: queries processed at a time in a prefill on a CPU, so that their scores stay in its cache.
        weights: of the positions being run, one per channel, ``[C, B, T]``: what a rule needs that attributes to positions
            (``pa-lrp``). None: zeros.
        trims, starts: cached properties of the current forward's masks (reading them from a GPU synchronises): whether a
            block of queries attends to nothing after it, and each row's first position if the mask is causal.
    """

    batch: int = 1
    channels: int = 1
    graph: str = "none"
    backward: bool = False
    divisors: Divisors = (1, 1, 1)
    cache: DualCache | None = None
    write: bool = True
    offsets: Offsets | None = None
    tap: Callable[[int, Tensor, Tensor, Tensor, Tensor], None] | None = None
    block: int = 64
    weights: Tensor | None = None
    trims: dict[tuple[int, int], bool] = field(default_factory=dict)
    starts: dict[int, Tensor | None] = field(default_factory=dict)

    def queries_at_once(self, scores_per_query: int, device: str) -> int:
        """Return how many queries a prefill processes at a time, given the scores per query (over all rows and heads)."""
        return self.block if device == "cpu" else max(self.block, GPU_SCORES // max(scores_per_query, 1))

    def plain(self, x: Tensor) -> bool:
        """Return whether the module's own forward suffices for input ``x``."""
        return self.channels == 1 and (self.graph != "surrogate" or not x.requires_grad)

    def value(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Compute the model's own value, without a graph unless the true gradient is requested."""
        with torch.set_grad_enabled(self.graph == "true" and torch.is_grad_enabled()):
            return function(*args, **kwargs)

    def const(self, x: Tensor) -> Tensor:
        """Return a factor of the rules, detached unless the true gradient is requested."""
        return x if self.graph == "true" else x.detach()

    def slope(self, z: Tensor, value: Tensor) -> Tensor:
        """Compute ``value / (z + eps)``, wide: a constant; in the true graph differentiable, except where eps dominates."""
        fixed = rules.slope(z, value)
        if self.graph != "true":
            return fixed
        wide = z.to(fixed.dtype)
        tiny = wide.abs() < NEAR_ZERO
        return torch.where(tiny, fixed, value.to(fixed.dtype) / (wide.masked_fill(tiny, 1.0) + rules.EPS))

    def shared(self, x: Tensor, parts: int) -> Tensor:
        """Return block 0's part of a product; in the surrogate graph its gradient is divided again."""
        return rules.uniform(x, parts) if self.graph == "surrogate" else x


def block_rows(x: Tensor, channels: int) -> int:
    """Return the rows per block of ``[(1 + C) * B, ...]``, or of ``[(1 + C) * B * T, D]`` where a layer flattens its input.

    Raises:
        UnsupportedError: the first dimension is not divisible into the blocks.
    """
    if x.shape[0] % channels:
        raise UnsupportedError(
            f"expected the first dimension of {tuple(x.shape)} to contain {channels} blocks (the model and its tangents)",
            hint=FALLBACK,
        )
    return x.shape[0] // channels


def blocks(x: Tensor, channels: int) -> Tensor:
    """Reshape ``[(1 + C) * B, ...]`` -> ``[1 + C, B, ...]``."""
    return x.reshape(channels, block_rows(x, channels), *x.shape[1:])
