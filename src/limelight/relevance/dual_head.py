"""The output embedding applied to a few rows: on a processor, in the order of the product that reads it once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limelight.relevance.dual_linear import plain, product

FEW = 8  # rows


def plain_head(head: nn.Module) -> bool:
    """A linear layer without a bias, neither quantised, adapted, hooked nor dispatched by accelerate."""
    hooked = bool(head._forward_hooks or head._forward_pre_hooks)  # theirs is the last word on what comes out
    return plain(head) and not hooked and getattr(head, "bias", None) is None


def project(head: nn.Module, hidden: Tensor) -> Tensor:
    """``head(hidden)`` for hidden ``[1 + C, B, D]`` -> ``[1 + C, B, V]``."""
    if not plain_head(head):
        out: Tensor = head(hidden)
        return out
    weight: Any = head.weight
    return product(hidden, weight, FEW)
