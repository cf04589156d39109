"""What one run of the rules does: in which direction, which rows are the model and which its tangents, what is constant."""

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
GPU_SCORES = 2**27  # attention scores held at a time by a prefill on a GPU: 256 MiB in 16 bits
NEAR_ZERO = 1e-6  # below it, d/dz of f(z) / (z + 1e-10) is an artefact of the 1e-10
Divisors = tuple[int, int, int]


class Offsets(Protocol):
    """Offsets the current query sees (cache scope). Shapes: B rows, Hkv kv heads, G query heads per kv head, Q = 1."""

    def scores(self, layer: int, q: Tensor) -> Tensor | None:
        """``q dK^T`` for q ``[B, Hkv, R, d]`` -> ``[B, Hkv, R, T]`` (R queries: channels x heads per group)."""
        ...

    def out(self, layer: int, weights: Tensor) -> Tensor | None:
        """``A dV`` for weights ``[B, Hkv, R, T]`` -> ``[B, Hkv, R, d]``."""
        ...


@dataclass
class Mode:
    """What one run of the rules does. Mutable, because what is put on a model reads it.

    Attributes:
        batch: rows of block 0.
        channels: blocks of the present forward, 1 + C (1: the model alone).
        graph: ``none``, ``surrogate`` (constants stay constants and the factors act again on block 0, as in the authors'
            second-order pass) or ``true`` (the gradient of the value).
        backward: rules for a backward pass: block 0 alone, its value the model's own bit for bit.
        divisors: of the gradient through queries, keys and values; 0 stops it, 1 leaves it alone.
        cache: keys, values and states of a forward-mode stream.
        write: store the new keys and values as they are computed.
        tap: when set, called with (layer, raw scores, weights, q, out) of the current token.
        block: queries handled at a time in a prefill on a processor, so that their scores stay in its cache.
        trims, starts: what is known of the masks of the present forward (asking a GPU's tensors waits for it): whether a
            block of queries sees nothing behind it, and where each row begins if the mask is causal.
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
    trims: dict[tuple[int, int], bool] = field(default_factory=dict)
    starts: dict[int, Tensor | None] = field(default_factory=dict)

    def queries_at_once(self, scores_per_query: int, device: str) -> int:
        """How many queries of a prefill are handled at a time, for that many scores (all rows and heads) per query."""
        return self.block if device == "cpu" else max(self.block, GPU_SCORES // max(scores_per_query, 1))

    def plain(self, x: Tensor) -> bool:
        """Whether the model's own forward is all that is wanted of a module whose input is ``x``."""
        return self.channels == 1 and (self.graph != "surrogate" or not x.requires_grad)

    def value(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """What the model itself computes: without a graph unless the true gradient is wanted."""
        with torch.set_grad_enabled(self.graph == "true" and torch.is_grad_enabled()):
            return function(*args, **kwargs)

    def const(self, x: Tensor) -> Tensor:
        """A factor of the rules: a constant unless the true gradient is wanted."""
        return x if self.graph == "true" else x.detach()

    def slope(self, z: Tensor, value: Tensor) -> Tensor:
        """``value / (z + eps)``, wide: a constant; in the true graph differentiable, save where only the eps would steer."""
        fixed = rules.slope(z, value)
        if self.graph != "true":
            return fixed
        wide = z.to(fixed.dtype)
        tiny = wide.abs() < NEAR_ZERO
        return torch.where(tiny, fixed, value.to(fixed.dtype) / (wide.masked_fill(tiny, 1.0) + rules.EPS))

    def shared(self, x: Tensor, parts: int) -> Tensor:
        """Block 0's part of a product: its gradient is divided again in the surrogate."""
        return rules.uniform(x, parts) if self.graph == "surrogate" else x


def block_rows(x: Tensor, channels: int) -> int:
    """Rows of one block in ``[(1 + C) * B, ...]``, or in ``[(1 + C) * B * T, D]`` where a layer flattens its input.

    Raises:
        UnsupportedError: the first dimension does not hold the blocks.
    """
    if x.shape[0] % channels:
        raise UnsupportedError(
            f"expected the first dimension of {tuple(x.shape)} to hold {channels} blocks (the model and its tangents)",
            hint=FALLBACK,
        )
    return x.shape[0] // channels


def blocks(x: Tensor, channels: int) -> Tensor:
    """``[(1 + C) * B, ...]`` -> ``[1 + C, B, ...]``."""
    return x.reshape(channels, block_rows(x, channels), *x.shape[1:])
