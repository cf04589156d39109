"""A decoder's arguments (masks, positions) for rows of values and tangents, and for the one position at work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.relevance.mode import FALLBACK


def last_rows(masks: Mapping[str, Any], windows: Mapping[str, int | None]) -> dict[str, Tensor | None]:
    """What the last position sees, of masks that arrive ready-made ``[B, 1, T, T]``."""
    unknown = sorted(k for k, v in masks.items() if isinstance(v, Tensor) and k not in windows)
    if unknown:
        raise UnsupportedError(f"do not know how the ready-made masks {unknown} go on", hint=FALLBACK)
    return {k: v[..., -1:, :] if isinstance(v, Tensor) else None for k, v in masks.items()}


def longer(row: Tensor | None, window: int | None) -> Tensor | None:
    """A mask's row for the following position: it sees what was seen and itself, as far as its window reaches."""
    if row is None:
        return None
    row = torch.cat([row, row.new_zeros((*row.shape[:-1], 1))], dim=-1)
    if window is not None:
        row[..., :-window] = torch.finfo(row.dtype).min
    return row


def tail(value: Any, count: int) -> Any:
    """The last positions of a mask or of position ids."""
    if isinstance(value, Mapping):
        return {k: tail(v, count) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    return value[..., -count:, -count:] if value.ndim == 4 else value[..., -count:]


def repeated(name: str, value: Any, rows: int) -> Any:
    """A decoder argument for that many rows: block 0's, repeated. Masks of one row broadcast by themselves."""
    if isinstance(value, Mapping):
        return {k: repeated(name, v, rows) for k, v in value.items()}
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    axis = 1 if "position" in name and value.ndim == 3 else 0  # M-RoPE positions are [axes, B, T]
    if value.shape[axis] == rows or (value.ndim == 4 and value.shape[axis] == 1):
        return value
    times = [1] * value.ndim
    times[axis] = rows // value.shape[axis]
    return value.repeat(times)
