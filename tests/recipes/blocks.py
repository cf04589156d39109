"""What the tests of the miniatures' recipes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def check_separate_blocks(
    decode: Callable[..., Tensor], model: Any, packer: Any, row: list[Any], features: Tensor
) -> None:
    """The second block of a packed row has the logits that it has alone: blocks of one recording do not see one another.

    ``features``: of the recording, ``[1, ...]``, as ``decode(model, batch, features)`` takes them.
    """
    with torch.no_grad():
        together, alone = decode(model, packer([row]), features), decode(model, packer([row[1:2]]), features)
    first, prefix = row[0], len(packer.prefix)
    start = prefix + sum(len(packer.encode(t)) for t in (first.text + " ASSISTANT:", " " + first.answer)) + 1
    length = alone.shape[1] - prefix
    torch.testing.assert_close(together[:, start : start + length], alone[:, prefix:], atol=1e-5, rtol=1e-4)
