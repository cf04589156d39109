"""Torch's fused attention in place of the eager computation, for passes that are differentiated once.

``scaled_dot_product_attention`` stores no ``[T, T]`` tensor, and causal prompts without padding need no mask either: the
kernel's causal mode is used. Layers that need scores or weights (a hook that reads or changes them, a soft-cap, learned
sinks) use the eager computation.

Differs from the eager computation only in the order of summation. It cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Fused:
    """State of one :func:`fused_attention` block. ``skipped``: a causal mask was omitted, so None means causal."""

    skipped: bool = False


_FUSED: ContextVar[Fused | None] = ContextVar("limelight_fused", default=None)


@contextmanager
def holding(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Set a context variable inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def fused_attention() -> AbstractContextManager[None]:
    """Use the fused kernel inside the block wherever scores and weights are not needed."""
    return holding(_FUSED, Fused())


def fused_state() -> Fused | None:
    """Return the state of the surrounding :func:`fused_attention` block in this context, if any."""
    return _FUSED.get()


def additive_mask(*args: Any, allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """Build transformers' eager mask ``[B, 1, Q, K]``; in a :func:`fused_attention` block None if it is purely causal."""
    from limelight.compat import eager_mask, sdpa_mask

    state = _FUSED.get()
    if state is None or not allow_is_causal_skip:
        eager: Tensor | None = eager_mask(*args, **kwargs)
        return eager
    dtype = kwargs.pop("dtype", torch.float32)
    seen = sdpa_mask(*args, **kwargs | {"allow_is_bidirectional_skip": False})
    if seen is None:
        state.skipped = True
        return None
    return torch.where(seen, torch.zeros((), device=seen.device, dtype=dtype), torch.finfo(dtype).min)


def left_out(module: nn.Module, mask: Tensor | None, query: Tensor, key: Tensor, is_causal: bool | None) -> bool:
    """Return whether this call's mask was omitted as causal, by the rules of transformers' ``sdpa`` attention."""
    state = _FUSED.get()
    if state is None or not state.skipped or mask is not None:
        return False
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return bool(causal) and query.shape[2] == key.shape[2] and query.shape[2] > 1


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Build the omitted additive mask, ``[1, 1, Q, K]``."""
    low = torch.finfo(query.dtype).min
    return query.new_full((query.shape[2], key.shape[2]), low).triu_(1)[None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, causal: bool) -> Tensor:
    """Compute ``softmax(scaling q k^T + mask) v`` with the fused kernel.

    Shapes: query ``[B, H, Q, d]``, key ``[B, Hkv, K, d]``, value ``[B, Hkv, K, e]``, additive mask or None; returns
    ``[B, H, Q, e]``.
    """
    blind = None if mask is None else mask.amax(-1, keepdim=True) <= torch.finfo(mask.dtype).min / 2
    even = value.mean(-2, keepdim=True) if blind is not None and bool(blind.any()) else None
    width, groups = value.shape[-1], query.shape[1] // key.shape[1]
    wide = max(query.shape[-1], width)  # kernels without [T, T] tensors need equal widths: pad with zeros
    query, key, value = (
        x if x.shape[-1] == wide else functional.pad(x, (0, wide - x.shape[-1])) for x in (query, key, value)
    )
    grouped = groups > 1 and _knows_groups(query, mask)
    if groups > 1 and not grouped:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if mask is not None and mask.dtype != query.dtype:
        mask = mask.clamp(min=torch.finfo(query.dtype).min).to(query.dtype)
    out = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, is_causal=causal, enable_gqa=grouped
    )
    out = out if width == wide else out[..., :width]
    if even is None or blind is None:
        return out
    # Fully masked queries (padding) attend uniformly to all keys; the kernel's gradient treats them as unmasked.
    return torch.where(blind, even.repeat_interleave(groups, dim=1), out)


def _knows_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Return whether the kernel supports grouped heads: on CUDA only in 16 bits without a mask."""
    if query.device.type == "cpu":
        return True
    return query.dtype in (torch.float16, torch.bfloat16) and mask is None and query.shape[-1] <= 256
