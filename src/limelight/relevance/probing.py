"""Probing a module on a small sample: whether it is elementwise, and whether it agrees with a formula."""

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
    """Call ``function(*args)`` without a graph; None if it rejects the sample (its shape, type or arguments).

    Raises:
        MemoryError, RuntimeError: the machine failed (memory, a device), which is not a property of the module.
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
    """Return whether this is nn.Linear, a quantised variant or an adapter around one (all have in_features)."""
    return isinstance(module, nn.Linear) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def sample(shape: tuple[int, ...], module: nn.Module) -> Tensor:
    """Return standard normal noise on the module's compute device and dtype; the same at every call."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device=device_of(module), dtype=dtype)


def tolerance(dtype: torch.dtype, wide: float, narrow: float) -> float:
    """Return the relative error allowed for rounding: ``wide`` in float32 and float64, ``narrow`` in 16 bits.

    With matrix products in between, ``wide`` is 1e-3: float32's own error is 1e-6, but TF32, which a GPU may use instead,
    has a 10-bit mantissa.
    """
    return wide if dtype in (torch.float32, torch.float64) else narrow


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to the largest entry of ``want``; infinity if their shapes differ or either is
    not finite."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.detach().float(), want.detach().float()
    size, error = float(want.abs().max()), float((got - want).abs().max())
    if error == 0.0:
        return 0.0
    return error / size if size > 0 and error < float("inf") else float("inf")  # NaN fails both


def agrees(got: Tensor, want: Tensor, wide: float = 1e-3, narrow: float = 5e-2) -> bool:
    """Return whether ``got`` equals ``want`` up to rounding (:func:`tolerance` of the dtype of ``want``)."""
    return got.shape == want.shape and relative_error(got, want) <= tolerance(want.dtype, wide, narrow)


def require_finite(module: nn.Module, out: Tensor) -> None:
    """Raise NotFiniteError if a module's output on ordinary noise is NaN or infinite, so that no formula can match."""
    if not bool(torch.isfinite(out).all()):
        raise NotFiniteError(
            f"{type(module).__name__} returns NaN or infinity for a normal input",
            hint="check weights and dtype; try float32",
        )


def elementwise(module: nn.Module) -> str:
    """Classify an elementwise module: ``activation``, ``identity`` or ``other``."""
    x = sample((1, 2, 8), module) * 2
    whole, alone = answer(module, x), answer(module, x[..., 3:4])
    if not isinstance(whole, Tensor) or whole.shape != x.shape or not isinstance(alone, Tensor):
        return "other"
    near = tolerance(whole.dtype, 1e-5, 2e-2)  # vectorised kernels round differently
    if not torch.allclose(whole[..., 3:4], alone, rtol=near, atol=near):
        return "other"
    return "identity" if torch.equal(whole, x) else "activation"


def activation_of(module: nn.Module) -> nn.Module | None:
    """Return the first child that is an elementwise function without parameters."""
    for child in module.children():
        if is_leaf(child) and not list(child.parameters()) and elementwise(child) == "activation":
            return child
    return None
