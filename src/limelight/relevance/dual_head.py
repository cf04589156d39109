"""The output embedding applied to a few rows: on a processor, in the order of the product that reads it once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FEW = 32  # rows


class _FewRows(torch.autograd.Function):
    """``x W^T`` as ``(W x^T)^T``: the same numbers. A product of very few rows by a tall matrix is read row by row in the
    usual order (three times slower for 2 x 512 by 32000 where it was measured); its gradient is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.mm(weight, x.t()).t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return torch.mm(grad, weight), None


def plain_head(head: nn.Module) -> bool:
    """A linear layer without a bias, neither quantised, adapted, hooked nor dispatched by accelerate."""
    exact = type(head) is nn.Linear and type(head.weight) is nn.Parameter
    hooked = bool(head._forward_hooks or head._forward_pre_hooks)  # theirs is the last word on what comes out
    return exact and not hooked and getattr(head, "bias", None) is None and "forward" not in vars(head)


def project(head: nn.Module, hidden: Tensor) -> Tensor:
    """``head(hidden)`` for hidden ``[1 + C, B, D]`` -> ``[1 + C, B, V]``."""
    rows = hidden.shape[:-1]
    few = 1 < rows.numel() <= FEW and hidden.device.type == "cpu" and hidden.dtype in (torch.float32, torch.float64)
    if not (few and plain_head(head)):
        out: Tensor = head(hidden)
        return out
    weight: Any = head.weight
    made: Tensor = _FewRows.apply(hidden.reshape(rows.numel(), -1), weight.detach())  # type: ignore[no-untyped-call]
    return made.reshape(*rows, -1)
