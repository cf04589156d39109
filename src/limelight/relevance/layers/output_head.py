"""The output head: the linear output embedding, and the family's scale and soft-cap of the logits.

Rule: identity rule for the soft-cap. The head comes after the decoder and is accessed through
:class:`limelight.models.adapter.Adapter`, so it is not matched as a kind; both directions call the functions here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limelight import compat
from limelight.models.adapter import Adapter
from limelight.models.detect import HeadScalars
from limelight.relevance import rules
from limelight.relevance.kind import Undo
from limelight.relevance.layers.linear import plain, product
from limelight.relevance.mode import Mode

FEW = 8  # rows


def plain_head(head: nn.Module) -> bool:
    """A linear layer without a bias, neither quantised, adapted, hooked nor dispatched by accelerate."""
    return plain(head) and not adds(head)


def adds(head: nn.Module) -> bool:
    """Whether the head may make something of nothing: a bias, that of an adapter, or what a hook does."""
    hooked = compat.count_forward_hooks(head) > 0  # theirs is the last word on what comes out
    return hooked or type(head) is not nn.Linear or head.bias is not None


def project(head: nn.Module, hidden: Tensor) -> Tensor:
    """Compute ``head(hidden)`` for hidden ``[1 + C, B, D]`` -> ``[1 + C, B, V]``."""
    if not plain_head(head):
        out: Tensor = head(hidden)
        return out
    weight: Any = head.weight
    return product(hidden, weight, FEW)


def attach(adapter: Adapter) -> Undo:
    """Attach the backward rule."""
    before = adapter.head_scalars
    if before.cap is not None:
        adapter.head_scalars = replace(before, rule=rules.identity)
    return lambda: setattr(adapter, "head_scalars", before)


def scaled(scalars: HeadScalars, logits: Tensor, phi: Tensor, graph: str) -> tuple[Tensor, Tensor]:
    """Apply the family's scale and soft-cap to logits ``[B, V]`` and their tangents ``[C, B, V]``."""
    if scalars.scale != 1.0:
        logits, phi = logits * scalars.scale, phi * scalars.scale
    if scalars.cap is not None:
        capped = torch.tanh(logits / scalars.cap) * scalars.cap
        slope = Mode(graph=graph).slope(logits, capped)
        phi = phi * slope
        logits = rules.gradient_of(logits * slope, capped) if graph == "surrogate" else capped
    if scalars.barred is not None:
        barred = scalars.barred.to(logits.device)
        logits = logits.index_fill(-1, barred, torch.finfo(logits.dtype).min)
        phi = phi.index_fill(-1, barred, 0.0)
    return logits, phi
