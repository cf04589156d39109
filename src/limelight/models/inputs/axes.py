"""Axes of one tensor argument: the batch axis, the position axis, and the value appended for a new token.

An :class:`Axes` is given as a layout, the names of a tensor's axes from first to last:

==============  ========================================================================================
``row``         rows of the batch; length one if all rows share the values
``position``    positions of the prompt (in a mask: the queries)
``key``         positions attended to, in a prepared attention mask
``picture``     images, clips or audio inputs of all rows, concatenated
anything else   unchanged (``axis`` of M-RoPE, ``head``, ``state``, ``feature`` ...)
==============  ========================================================================================

``new`` is the value for a new text token: ``zero`` (a type, a media marker), ``one`` (a real position), ``next`` (the next
position id), ``same`` (the last token's value), ``causal`` (it attends to what the last token does, and to itself, within
the layer's reach), or ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.inputs.ready_masks import Reach, grown, longer

New = Literal["zero", "one", "next", "same", "causal", "unknown"]


FULL = Reach()


@dataclass(frozen=True)
class Axes:
    """The axes of an argument, and the operations on prompts derived from them. No operation works in place.

    Attributes:
        layout: names of the axes, separated by spaces.
        new: the value for a new text token.
        media: it belongs to the media (a prompt without media does not have it).
        features: it contains the features themselves, which must be part of relevance's leaf tensor.
        indexes: an argument ``[picture, patch, ...]`` whose patches its values number through the batch (negative: none).
    """

    layout: str
    new: New = "unknown"
    media: bool = False
    features: bool = False
    indexes: str = ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.layout.split())

    def _axis(self, name: str) -> int | None:
        return self.names.index(name) if name in self.names else None

    @property
    def rows(self) -> int | None:
        """The batch axis."""
        return self._axis("row")

    @property
    def positions(self) -> int | None:
        """The axis of the prompt's positions."""
        return self._axis("position")

    @property
    def media_items(self) -> int | None:
        """The axis along which the images, clips or audio inputs of all rows are concatenated."""
        return self._axis("picture")

    @property
    def keys(self) -> int | None:
        """The axis of the positions attended to, in a prepared mask."""
        return self._axis("key")

    def length(self, value: Tensor) -> int | None:
        """Return the number of positions of ``value``, or None if it has no such axis."""
        return None if self.positions is None else int(value.shape[self.positions])

    def row(self, value: Tensor, index: int) -> Tensor:
        """Select one row, keeping the axis."""
        if self.rows is None or value.shape[self.rows] == 1:
            return value
        return value.narrow(self.rows, index, 1)

    def reorder(self, value: Tensor, index: Tensor) -> Tensor:
        """Select the rows ``index`` in this order, with repetitions; shared values are expanded to all rows."""
        if self.rows is None:
            return value
        if value.shape[self.rows] == 1:
            return value.expand([len(index) if n == self.rows else -1 for n in range(value.ndim)])
        return value.index_select(self.rows, index.to(value.device))

    def repeat(self, value: Tensor, rows: int) -> Tensor:
        """Tile the batch to ``rows`` rows; a mask of one row is left to broadcasting."""
        if self.rows is None or value.shape[self.rows] == rows:
            return value
        if value.shape[self.rows] == 1 and "head" in self.names:
            return value
        times = [1] * value.ndim
        times[self.rows] = rows // value.shape[self.rows]
        return value.repeat(times)

    def last(self, value: Tensor) -> Tensor:
        """Return the last position's value; of a mask, its whole row."""
        return value if self.positions is None else value.narrow(self.positions, value.shape[self.positions] - 1, 1)

    def tail(self, value: Tensor, count: int) -> Tensor:
        """Keep only the last ``count`` positions; of a mask, along both axes."""
        for axis in (self.positions, self.keys):
            if axis is not None:
                value = value.narrow(axis, value.shape[axis] - count, count)
        return value

    def following(self, last: Tensor, reach: Reach = FULL, padding: Tensor | None = None) -> Tensor:
        """Return the value for a new text token, given the last position's value.

        Raises:
            UnsupportedError: the value for a text token is not declared.
        """
        if self.positions is None or self.new == "same":
            return last
        if self.new == "causal":
            padding = torch.zeros(len(last), dtype=torch.long, device=last.device) if padding is None else padding
            return longer(last, reach, padding[: len(last)].to(last.device))
        if self.new == "next":
            return following(last)
        if self.new in ("zero", "one"):
            return torch.full_like(last, int(self.new == "one"))
        raise UnsupportedError(
            f"the value for a new token is not declared for an argument with the axes [{self.layout}]",
            hint="declare it in limelight/models/inputs/decoder_inputs.py (Axes.new)",
        )

    def append(self, value: Tensor, count: int = 1, reach: Reach = FULL) -> Tensor:
        """Append ``count`` text tokens to every row.

        Raises:
            UnsupportedError: the value for a text token is not declared.
        """
        if self.positions is None or not count:
            return value
        if self.keys is not None:
            if self.new == "unknown":
                self._require_no_keys("lengthened")
            return grown(value, reach, count)
        pieces = [value]
        for _ in range(count):
            pieces.append(self.following(self.last(pieces[-1])))
        return torch.cat(pieces, dim=self.positions)

    def insert(self, value: Tensor, at: Sequence[int], count: int) -> Tensor:
        """Insert ``count`` text tokens before position ``at[r]`` of every row ``r``.

        Raises:
            UnsupportedError: a prepared mask, which cannot be extended; or the value for a token is not declared.
        """
        if self.positions is None:
            return value
        self._require_no_keys("widened")
        return self._by_row(value, len(at), lambda r, row: self._inserted(row, at[r], count))

    def drop(self, value: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
        """Keep only the positions ``keep`` [B, T] among the real ones ``mask`` [B, T]: the rest is made contiguous, rows
        are left-padded again (with zeros), and position ids continue where the dropped ones began.

        Raises:
            UnsupportedError: a prepared mask, which cannot be reduced.
        """
        if self.positions is None:
            return value
        self._require_no_keys("narrowed")
        keep = keep & mask
        length = int(keep.sum(-1).max())
        return self._by_row(value, len(keep), lambda r, row: self._dropped(row, keep[r], mask[r], length))

    def pad(self, value: Tensor, count: int, fill: int = 0) -> Tensor:
        """Add ``count`` positions of padding in front."""
        if self.positions is None or not count:
            return value
        self._require_no_keys("padded")
        shape = list(value.shape)
        shape[self.positions] = count
        return torch.cat([value.new_full(shape, fill), value], dim=self.positions)

    def _by_row(self, value: Tensor, rows: int, change: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Apply ``change(r, [.., T, ..])`` to each row, keeping the axis; shared values are copied per row."""
        if self.rows is None:
            if rows != 1:
                raise UnsupportedError(
                    f"an argument [{self.layout}] is shared by {rows} different rows", hint="run the prompts one by one"
                )
            return change(0, value)
        each = value.expand([rows if n == self.rows else -1 for n in range(value.ndim)])
        return torch.cat([change(r, each.narrow(self.rows, r, 1)) for r in range(rows)], dim=self.rows)

    def _inserted(self, row: Tensor, at: int, count: int) -> Tensor:
        axis = self._positions
        before, behind = row.narrow(axis, 0, at), row.narrow(axis, at, row.shape[axis] - at)
        if self.new == "next":  # new position ids for each, shifting the later ones
            first = behind.narrow(axis, 0, 1) if behind.shape[axis] else following(self.last(row))
            return torch.cat([before, first + torch.arange(count, device=row.device), behind + count], dim=axis)
        model = row.narrow(axis, max(at - 1, 0), 1)
        new = self.following(model).expand([count if n == axis else -1 for n in range(row.ndim)])
        return torch.cat([before, new, behind], dim=axis)

    def _dropped(self, row: Tensor, keep: Tensor, mask: Tensor, length: int) -> Tensor:
        axis = self._positions
        if self.new == "next":
            steps = torch.diff(row, dim=-1, append=following(self.last(row))) * (mask & ~keep).to(row.device)
            row = row - (steps.cumsum(-1) - steps)
        kept = row.index_select(axis, keep.nonzero()[:, 0].to(row.device))
        return self.pad(kept, length - kept.shape[axis])

    @property
    def _positions(self) -> int:
        return 0 if self.positions is None else self.positions

    def _require_no_keys(self, done: str) -> None:
        if self.keys is not None:
            raise UnsupportedError(
                f"a prepared attention mask [{self.layout}] cannot be {done}",
                hint="pass the two-dimensional mask of the tokenizer",
            )


def following(last: Tensor) -> Tensor:
    """Return the position ids of a text token after the last position, ``[B, 1]`` or M-RoPE's ``[axes, B, 1]``."""
    if last.ndim == 3:  # [.., t, h, w]: text continues after the largest of the three
        last = torch.cat([last[:-3], last[-3:].amax(dim=0, keepdim=True).expand_as(last[-3:])])
    return last + 1
