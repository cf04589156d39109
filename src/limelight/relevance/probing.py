"""Asking a module what it does, on a small sample: is it elementwise, and does it compute what a formula says?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import NotFiniteError
from limelight.models.runtime.machine import machine_failed
from limelight.models.runtime.offload import device_of

HINT = "no relevance rule is known for it; GRADIENT_INPUT needs no rules, or add a kind in limelight/relevance/layers/"


def answer(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` without a graph; None where it refuses a sample (its shape, its type, its arguments).

    Raises:
        MemoryError, RuntimeError: the machine failed (memory, a device), which says nothing about a module.
    """
    try:
        with torch.no_grad():
            return function(*args)
    except (TypeError, ValueError, IndexError, AttributeError):
        return None
    except RuntimeError as error:
        if machine_failed(error):
            raise
        return None


def is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None and not isinstance(module, (nn.ModuleList, nn.Sequential))


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, its quantised relatives and adapters around it (all state their in_features)."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def sample(shape: tuple[int, ...], module: nn.Module) -> Tensor:
    """Standard normal noise on the device and in the dtype in which the module computes; the same at every call."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device=device_of(module), dtype=dtype)


def tolerance(dtype: torch.dtype, wide: float, narrow: float) -> float:
    """The relative error that rounding may cause: ``wide`` in float32 and float64, ``narrow`` in 16 bits.

    Where matrices are multiplied in between, ``wide`` is 1e-3: float32 itself is off by 1e-6, but TF32, which a GPU may
    use instead, keeps 10 bits.
    """
    return wide if dtype in (torch.float32, torch.float64) else narrow


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest difference, in units of the largest entry of ``want``; infinity where either is not finite."""
    got, want = got.detach().float(), want.detach().float()
    size, error = float(want.abs().max()), float((got - want).abs().max())
    if error == 0.0:
        return 0.0
    return error / size if size > 0 and error < float("inf") else float("inf")  # NaN fails both


def agrees(got: Tensor, want: Tensor, wide: float = 1e-3, narrow: float = 5e-2) -> bool:
    """Whether ``got`` is ``want`` up to rounding (:func:`tolerance` of the dtype of ``want``)."""
    return got.shape == want.shape and relative_error(got, want) <= tolerance(want.dtype, wide, narrow)


def require_finite(module: nn.Module, out: Tensor) -> None:
    """Raise NotFiniteError when a module's output on ordinary noise is NaN or infinite: no formula fits that."""
    if not bool(torch.isfinite(out).all()):
        raise NotFiniteError(
            f"{type(module).__name__} makes NaN or infinity of a normal input",
            hint="check weights and dtype; try float32",
        )


def elementwise(module: nn.Module) -> str:
    """``activation``, ``identity`` or ``other``."""
    x = sample((1, 2, 8), module) * 2
    whole, alone = answer(module, x), answer(module, x[..., 3:4])
    if not isinstance(whole, Tensor) or whole.shape != x.shape or not isinstance(alone, Tensor):
        return "other"
    near = tolerance(whole.dtype, 1e-5, 2e-2)  # vectorised kernels round differently
    if not torch.allclose(whole[..., 3:4], alone, rtol=near, atol=near):
        return "other"
    return "identity" if torch.equal(whole, x) else "activation"


def activation_of(module: nn.Module) -> nn.Module | None:
    """The first child that is an elementwise function without parameters."""
    for child in module.children():
        if is_leaf(child) and not list(child.parameters()) and elementwise(child) == "activation":
            return child
    return None
