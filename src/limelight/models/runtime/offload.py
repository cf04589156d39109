"""Access to weights that accelerate offloads to CPU or disk between forwards.

A module dispatched by ``device_map`` has a hook (``_hf_hook``) that loads its weights before its forward and offloads them
afterwards; in between they are empty tensors on the ``meta`` device. Running the module works as usual; code that reads
weights must use these functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight import compat
from limelight.errors import UnsupportedError


def offloading(module: nn.Module) -> Any:
    """Return the hook that loads this module's own weights before each forward, or None."""
    hook = compat.accelerate_hook(module)
    for one in getattr(hook, "hooks", (hook,)):  # accelerate chains several
        if getattr(one, "offload", False) and getattr(one, "weights_map", None) is not None:
            return one
    return None


def device_of(module: nn.Module) -> torch.device:
    """Return the module's compute device: its hook's execution device, else its first weight's (CPU without weights)."""
    for inner in module.modules():
        weight = next(iter([*inner.parameters(recurse=False), *inner.buffers(recurse=False)]), None)
        if weight is None:
            continue
        hook = offloading(inner)
        if weight.device.type != "meta" or hook is None:
            return weight.device
        return torch.device("cpu" if hook.execution_device is None else hook.execution_device)
    return torch.device("cpu")


def weight_of(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer with the values used when the module runs; a copy if it is offloaded.

    Raises:
        UnsupportedError: it is on ``meta`` and the module has no hook that loads it.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor) or weight.device.type != "meta":
        return weight if isinstance(weight, Tensor) else None
    hook = offloading(module)
    if hook is None:
        raise UnsupportedError(
            f"the {name} of {type(module).__name__} is on the device 'meta', and no hook of the module loads it",
            hint="load the weights; with accelerate leave preload_module_classes out, so that each module loads its own",
        )
    return torch.as_tensor(hook.weights_map[name]).detach().to(device_of(module), copy=True)


def present(module: nn.Module, name: str) -> Tensor:
    """Return :func:`weight_of` a weight that must exist."""
    weight = weight_of(module, name)
    if weight is None:
        raise UnsupportedError(f"{type(module).__name__} has no {name}", hint="report this family")
    return weight
