"""A decoder's arguments (masks, positions) for rows of values and tangents, and for the one position at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from limelight.models.inputs.ready_masks import Reach, longer, padding_of, reach_of


@dataclass(frozen=True)
class ReadyRow:
    """What the last position sees, ``[B, 1, 1, T]``, of a mask that arrived ready-made; ``padding`` ``[B]`` on the left."""

    row: Tensor
    reach: Reach
    padding: Tensor

    def longer(self) -> ReadyRow:
        """The same of the position that follows."""
        return replace(self, row=longer(self.row, self.reach, self.padding))


def last_rows(masks: Mapping[str, Any], windows: Mapping[str, Reach], ahead: int = 1) -> dict[str, ReadyRow | None]:
    """The last rows of masks that arrive ready-made ``[B, 1, T, T]``.

    Raises:
        UnsupportedError: nobody knows how one of them goes on for ``ahead`` positions.
    """
    found: dict[str, ReadyRow | None] = {}
    for key, mask in masks.items():
        known = isinstance(mask, Tensor)
        found[key] = (
            ReadyRow(mask[..., -1:, :], reach_of(key, mask.shape[-1] + ahead, windows), padding_of(mask))
            if known
            else None
        )
    return found


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
