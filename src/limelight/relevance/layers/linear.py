"""Linear layers: plain in the backward pass; in forward mode the bias is added to block 0 only.

Products of few rows with a tall matrix are computed in the cheaper order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.models.runtime.offload import weight_of
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode, block_rows
from limelight.relevance.probing import is_linear

FEW = 4  # maximum number of rows for which the other order was cheaper in all measurements
_WIDE = (torch.float32, torch.float64)


def plain(module: nn.Module) -> bool:
    """Return whether this is a linear layer that is not quantised, adapted, parametrised or dispatched by accelerate."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module)


def product(x: Tensor, weight: Tensor, few: int = FEW) -> Tensor:
    """Compute ``x W^T`` for x ``[..., I]`` and W ``[O, I]`` -> ``[..., O]``; W is a constant.

    Few rows with a tall matrix are computed as ``(W x^T)^T``, with the same result. On a CPU, BLAS takes 1.4 to 3 times as
    long for two rows as for one in the usual order, and about as long as for one in this order. The gradient keeps the
    usual order, which is cheap for it, as ``x^T`` is a view of contiguous rows.
    """
    rows, (out, into) = x.shape[:-1].numel(), weight.shape
    graph = x.requires_grad and torch.is_grad_enabled()
    tall = out >= 2 * into if graph else out >= into  # with a graph, more is written besides the product
    if not (1 < rows <= few and tall and x.device.type == "cpu" and x.dtype in _WIDE and x.dtype is weight.dtype):
        return functional.linear(x, weight)
    flat = x.reshape(rows, into).contiguous()
    return torch.mm(weight.detach(), flat.t()).t().contiguous().reshape(*x.shape[:-1], out)


def linear_jvp(module: Any, mode: Mode) -> Callable[[Tensor], Tensor]:
    """Build the forward of a linear layer over blocks of rows."""
    original, bias, exact = module.forward, weight_of(module, "bias"), plain(module)

    def forward(x: Tensor) -> Tensor:
        if mode.channels == 1 or not (exact or bias is not None):
            return original(x)  # type: ignore[no-any-return]
        if bias is None:
            return product(x, module.weight)
        b = block_rows(x, mode.channels)
        if exact:
            out = product(x, module.weight)
            flag = out.new_zeros(x.shape[0], *([1] * (x.ndim - 1)))
            flag[:b] = 1
            return out + flag * bias
        out = original(x)
        return torch.cat([out[:b], out[b:] - bias.to(out.device, out.dtype)])

    return forward


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if is_linear(module):
        yield ModuleMatch("linear", name, module, covers=tuple(module.modules()))


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    """Handle every linear inside adapters and quantised layers, since the bias may belong to a wrapped one."""
    if mode.backward:
        return
    for module in filter(is_linear, match.module.modules()):
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if plain(module) or "bias" in dict(own):
            yield replaced(module, linear_jvp(module, mode))


KIND = LayerKind("linear", recognise, run, order=20)
