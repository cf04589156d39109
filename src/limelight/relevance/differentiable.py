"""Check that every linear layer propagates gradients; some quantised kinds do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import NotDifferentiableError, UnknownKindError
from limelight.models.runtime.machine import machine_failed
from limelight.models.runtime.offload import device_of
from limelight.relevance.probing import is_linear


def check_differentiable(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Test one linear layer of each type.

    Raises:
        NotDifferentiableError: it does not propagate gradients to its input.
    """
    seen: set[type] = set()
    for name, module in modules:
        if is_linear(module) and type(module) not in seen:
            seen.add(type(module))
            _check_linear(name, module)


def _check_linear(name: str, module: Any) -> None:
    parameter = next(module.parameters(), None)
    device = device_of(module)
    if device.type == "meta":
        return
    floating = parameter is not None and parameter.is_floating_point()
    dtype = parameter.dtype if floating and parameter is not None else torch.float32
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(1, 1, int(module.in_features), device=device, dtype=dtype, requires_grad=True)
            out = module(x)
    except RuntimeError as error:
        if machine_failed(error):
            raise
        raise NotDifferentiableError(
            f"{name} ({type(module).__name__}) cannot be run with gradients: {str(error).splitlines()[0]}",
            hint="load the model outside inference_mode; among quantised linears, bitsandbytes' and torchao's weight-only "
            "ones propagate gradients",
        ) from error
    if not isinstance(out, Tensor):
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) has the attributes of a linear layer but returns {type(out).__name__}",
            hint="no relevance rule is known for it (routers of expert models may look like this)",
        )
    if not out.requires_grad or _dead_end(out.grad_fn):
        raise NotDifferentiableError(
            f"{name} ({type(module).__name__}) does not propagate gradients to its input",
            hint="weight-only quantisation (torchao int8 weight-only, bitsandbytes) propagates gradients; the meter and "
            "relevance-contrastive do not need them, as long as activations are not quantised",
        )


def _dead_end(node: Any) -> bool:
    """Return whether the graph contains operators without a derivative, through which backward would only warn."""
    names = []
    queue = [node]
    while queue:
        node = queue.pop()
        names.append(node.name())
        queue += [parent for parent, _ in node.next_functions if parent is not None]
    return any("NotImplemented" in name for name in names)
