"""The model asked again with part of its media masked: what insertion and deletion curves of an attribution are made of.

    p(kept) = softmax(logits of the decoder, masked embeddings)[token]

A masked position keeps its place and its attention, but its embedding becomes the mean of all perceptual positions
(``mean``, which stays among the values the decoder knows) or nothing (``zero``). Source: insertion and deletion of
Petsiuk et al., "RISE", 2018, moved from pixels to the decoder's perceptual positions, where the relevance lives.
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
    """Every position that is not text, in order."""
    return [i for s in spans if s.modality != "text" for i in range(s.start, s.stop)]


def decision(
    adapter: Adapter, call: DecoderCall, positions: Sequence[int], token: int, *, baseline: Baseline = "mean"
) -> Callable[[Any], float]:
    """A function of ``kept`` (``[n]`` booleans, one per position): the probability of ``token`` after the last position.

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
            f"cannot mask {len(positions)} positions of {call.length}", hint="pass those of the picture or sound"
        )
    where = torch.tensor(positions, device=call.embeds.device)
    shown = call.embeds[0, where]
    instead = shown.mean(0) if baseline == "mean" else torch.zeros_like(shown[0])

    def ask(kept: Any) -> float:
        mask = torch.as_tensor(kept, dtype=torch.bool, device=shown.device)
        if mask.shape != where.shape:
            raise SettingError(f"kept is {tuple(mask.shape)}, expected {tuple(where.shape)}", hint="one per position")
        embeds = call.embeds.clone()
        embeds[0, where] = torch.where(mask[:, None], shown, instead)
        with torch.no_grad():
            logits = adapter.logits(adapter.hidden(call, embeds)[:, -1])[0].float()
        return float(logits.softmax(-1)[token])

    return ask
