"""Extending prepared attention masks ``[B, 1, T, T]`` for further tokens.

A generated token attends to what the last one did and to itself, within the reach of its layer kind: everything, a
sliding window, or its own chunk. Chunks are counted from a row's first real position, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.errors import PromptError, UnsupportedError


@dataclass(frozen=True)
class Reach:
    """The reach of a layer kind's attention: ``window`` positions (itself included), its own ``chunk``, or everything."""

    window: int | None = None
    chunk: int | None = None

    @property
    def least(self) -> int | None:
        """The longest prompt for which the reach has no effect; None: any."""
        return self.window if self.chunk is None else self.chunk

    def hides(self, queries: Tensor, keys: Tensor, padding: Tensor) -> Tensor:
        """Return which keys ``[K]`` are out of reach of queries ``[N]``: bool ``[B, N, K]``; ``padding`` ``[B]``: on the left."""
        at, key = queries[None, :, None], keys[None, None, :]
        hidden = torch.zeros(len(padding), len(queries), len(keys), dtype=torch.bool, device=keys.device)
        if self.window is not None:
            hidden = hidden | (key <= at - self.window)
        if self.chunk is not None:
            front = padding[:, None, None]
            hidden = hidden | (key < front + (at - front).div(self.chunk, rounding_mode="floor") * self.chunk)
        return hidden


def reaches(config: Any) -> dict[str, Reach]:
    """Map the key of a prepared mask to its reach; ``""`` is a mask for all layers, absent if these differ in kind."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    chunk = getattr(config, "attention_chunk_size", None)
    found = {"full_attention": Reach()}
    if window:
        found["sliding_attention"] = Reach(window=int(window))
    if chunk:
        found["chunked_attention"] = Reach(chunk=int(chunk))
    types = set(getattr(config, "layer_types", None) or ())
    here = [found[t] for t in sorted(types) if t in found] if types else list(found.values())[1:]
    kinds = set(here) or {Reach()}
    return found | ({"": kinds.pop()} if len(kinds) == 1 else {})


def reach_of(name: str, length: int, known: Mapping[str, Reach]) -> Reach:
    """Return the reach of a mask that is to be extended to ``length`` positions.

    Raises:
        UnsupportedError: unknown reach.
    """
    if name in known:
        return known[name]
    if name == "" and not known:
        return Reach()
    limits = [r.least for r in known.values() if r.least is not None]
    if name == "" and length <= min(limits, default=0):
        return Reach()
    what = f"the prepared mask {name!r}" if name else "one prepared mask for layers of several kinds"
    raise UnsupportedError(
        f"cannot extend {what} (known: {', '.join(sorted(k for k in known if k)) or 'none'})",
        hint="pass the attention mask as [batch, positions], so that the model builds its masks itself",
    )


def padding_of(mask: Tensor) -> Tensor:
    """Return the number of left padding positions per row ``[B]``: queries that are fully masked."""
    blind = mask[:, 0].amax(-1) <= torch.finfo(mask.dtype).min / 2
    return blind.long().cumprod(-1).sum(-1)


def grown(mask: Tensor, reach: Reach, count: int = 1) -> Tensor:
    """Extend an additive mask ``[B, 1, T, T]`` by ``count`` causal rows and columns.

    Raises:
        UnsupportedError: the mask is not square.
    """
    length = mask.shape[-1]
    if mask.shape[-2] != length:
        raise UnsupportedError(
            f"expected a prepared mask [batch, 1, T, T], got {tuple(mask.shape)}",
            hint="pass the attention mask as [batch, positions], so that the model builds its masks itself",
        )
    low = torch.finfo(mask.dtype).min
    before = torch.nn.functional.pad(mask, (0, count), value=low)
    among = mask.new_full((count, count), low).triu(1).expand(*mask.shape[:2], -1, -1)
    rows = torch.cat([mask[..., -1:, :].expand(-1, -1, count, -1), among], dim=-1)
    positions = torch.arange(length + count, device=mask.device)
    hidden = reach.hides(positions[length:], positions, padding_of(mask))
    return torch.cat([before, rows.masked_fill(hidden[:, None], low)], dim=-2)


def longer(row: Tensor, reach: Reach, padding: Tensor) -> Tensor:
    """Extend the last row of a mask, ``[B, 1, 1, T]``, to that of the next position: ``[B, 1, 1, T + 1]``."""
    row = torch.cat([row, row.new_zeros((*row.shape[:-1], 1))], dim=-1)
    positions = torch.arange(row.shape[-1], device=row.device)
    hidden = reach.hides(positions[-1:], positions, padding)
    return row.masked_fill(hidden[:, None], torch.finfo(row.dtype).min)


def additive(value: Any, dtype: torch.dtype) -> Any:
    """Convert prepared masks to additive ones: boolean masks (True: attended) become 0 and the dtype's minimum.

    Raises:
        PromptError: integer masks, which are ambiguous.
    """
    if isinstance(value, Mapping):
        return {k: additive(v, dtype) for k, v in value.items()}
    if not isinstance(value, Tensor) or value.ndim != 4 or value.is_floating_point():
        return value
    if value.dtype != torch.bool:
        raise PromptError(
            f"expected an attention mask [batch, 1, T, T] of booleans or additive floats, got {value.dtype}",
            hint="call .bool() on a mask of 1 (attended) and 0 (masked)",
        )
    return torch.where(value, torch.zeros((), dtype=dtype, device=value.device), torch.finfo(dtype).min)
