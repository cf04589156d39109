"""Token probability with part of the media masked, for insertion and deletion curves of an attribution.

    p(kept) = softmax(logits of the decoder, masked embeddings)[token]

A masked position keeps its place and its attention, but its embedding is replaced by the mean over all media positions
(``mean``, which stays within the decoder's usual range of values) or by zeros (``zero``). Source: insertion and deletion
of Petsiuk et al., "RISE", 2018, applied to the decoder's media positions instead of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.types import Span

Baseline = Literal["mean", "zero"]


def perceptual(spans: Sequence[Span]) -> list[int]:
    """Return all non-text positions, in order."""
    return [i for s in spans if s.modality != "text" for i in range(s.start, s.stop)]


def decision(
    adapter: Adapter, call: DecoderCall, positions: Sequence[int], token: int, *, baseline: Baseline = "mean"
) -> Callable[[Any], float]:
    """Return a function from ``kept`` (``[n]`` booleans, one per position) to the probability of ``token`` as the next token.

    Args:
        call: one captured row.
        positions: the ``n`` positions that can be masked.

    Raises:
        SettingError: no positions, one outside the sequence, or an unknown baseline.
    """
    if baseline not in get_args(Baseline):
        raise SettingError(f"baseline must be one of {get_args(Baseline)}, got {baseline!r}", hint="'mean' is usual")
    if not positions or not all(0 <= p < call.length for p in positions):
        raise SettingError(
            f"cannot mask {len(positions)} positions of {call.length}", hint="pass the positions of the media"
        )
    where = torch.tensor(positions, device=call.embeds.device)
    original = call.embeds[0, where]
    replacement = original.mean(0) if baseline == "mean" else torch.zeros_like(original[0])

    def probability(kept: Any) -> float:
        mask = torch.as_tensor(kept, dtype=torch.bool, device=original.device)
        if mask.shape != where.shape:
            raise SettingError(f"kept is {tuple(mask.shape)}, expected {tuple(where.shape)}", hint="one per position")
        embeds = call.embeds.clone()
        embeds[0, where] = torch.where(mask[:, None], original, replacement)
        with torch.no_grad():
            logits = adapter.logits(adapter.hidden(call, embeds)[:, -1])[0].float()
        return float(logits.softmax(-1)[token])

    return probability
