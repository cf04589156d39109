"""The output embedding applied to a few rows: on a processor, in the order of the product that reads it once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limelight.relevance.layers.linear import plain, product

FEW = 8  # rows


def plain_head(head: nn.Module) -> bool:
    """A linear layer without a bias, neither quantised, adapted, hooked nor dispatched by accelerate."""
    return plain(head) and not adds(head)


def adds(head: nn.Module) -> bool:
    """Whether the head may make something of nothing: a bias, that of an adapter, or what a hook does."""
    hooked = bool(head._forward_hooks or head._forward_pre_hooks)  # theirs is the last word on what comes out
    return hooked or type(head) is not nn.Linear or head.bias is not None


def project(head: nn.Module, hidden: Tensor) -> Tensor:
    """``head(hidden)`` for hidden ``[1 + C, B, D]`` -> ``[1 + C, B, V]``."""
    if not plain_head(head):
        out: Tensor = head(hidden)
        return out
    weight: Any = head.weight
    return product(hidden, weight, FEW)
