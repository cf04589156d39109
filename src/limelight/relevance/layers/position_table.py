"""Learned position embeddings beside the layers: treated as a bias, which enters only block 0."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.inputs.position_mask import is_positions
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode, block_rows


def recognise(name: str, module: nn.Module) -> Iterator[ModuleMatch]:
    if not name.startswith("layers.") and (isinstance(module, nn.Embedding) or is_positions(module)):
        yield ModuleMatch("position_table", name, module)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    if mode.backward:
        return
    original = match.module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = original(*args, **kwargs)
        if mode.channels == 1:
            return out
        if out.ndim == 2:  # positions that all rows share
            out = out[None]
        if out.shape[0] == 1:
            out = out.expand(mode.channels * mode.batch, *out.shape[1:])
        first = block_rows(out, mode.channels)
        return torch.cat([out[:first], torch.zeros_like(out[first:])])

    yield replaced(match.module, forward)


KIND = LayerKind("position_table", recognise, run)
