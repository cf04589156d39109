"""Forward-mode relevance beside the backward route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import ATTN_LRP, Composite
from limelight.relevance.forward.stream import DualStream, modality_channel, text_channel


def stream(
    adapter: Adapter, call: DecoderCall, media_mask: Tensor, composite: Composite = ATTN_LRP, **more: Any
) -> DualStream:
    """Phi_M and Phi_T."""
    return DualStream(
        adapter, call, [modality_channel(media_mask, call.mask), text_channel(media_mask, call.mask)], composite, **more
    )


@torch.no_grad()
def prefilled(
    adapter: Adapter, call: DecoderCall, media_mask: Tensor, composite: Composite = ATTN_LRP
) -> tuple[Tensor, Tensor]:
    dual = stream(adapter, call, media_mask, composite)
    return dual.heads(dual.prefill())


@torch.no_grad()
def after(dual: DualStream, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prefill, then some tokens a row."""
    output = dual.prefill()
    for token in tokens:
        dual.append(torch.tensor(token))
        output = dual.current()
    return dual.heads(output)


def backward_sums(
    adapter: Adapter, call: DecoderCall, media_mask: Tensor, targets: Sequence[int], composite: Composite
) -> tuple[Tensor, Tensor]:
    """Logits ``[V]`` and sums of R over media and text ``[2, k]``, by one backward pass a target."""
    with torch.enable_grad(), attached(adapter, composite):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0]
        rows = [input_relevance(logits[t], embeds, retain_graph=True)[0].detach() for t in targets]
    here = media_mask[0]
    return logits.detach(), torch.stack([torch.stack([r[here].sum(), r[~here].sum()]) for r in rows], dim=-1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b.to(a.dtype), atol=tolerance, rtol=tolerance)
