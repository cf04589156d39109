"""Relevance over the time of a sound's own input, where it was carried on through the encoder."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.errors import SettingError
from limelight.types import Relevance

STEP = 0.1  # seconds of a sound's input that are shown as one


def over_time(relevance: Relevance, seconds: float = 1.0, index: int = 0) -> Tensor:
    """Return the relevance of a sound's own input (frames or samples, through the encoder) per ``seconds`` of it: ``[n]``,
    signed, in units of the logit; the last entry may cover less.

    Args:
        relevance: of ``attribute(..., through_encoder=True)``.
        index: the sound among those of the prompt.

    Raises:
        SettingError: relevance was not carried on through the encoder, there is no such sound, or ``seconds`` is not positive.
    """
    name = next(iter(relevance.media_times), None)
    if name is None or not 0 <= index < len(relevance.media_inputs[name]):
        raise SettingError(
            f"the relevance of sound {index} over its own input is unknown",
            hint="attribute(..., through_encoder=True), with a model that takes sound; sounds are counted from 0",
        )
    if not seconds > 0:
        raise SettingError(f"expected a positive number of seconds, got {seconds}", hint="such as 1.0 or 0.1")
    axis, step = relevance.media_times[name]
    scores = relevance.media_inputs[name][index].movedim(axis - 1, 0)
    frames = scores.reshape(len(scores), -1).sum(-1)
    bins = ((torch.arange(len(frames), dtype=torch.float64) + 0.5) * step / seconds).long()
    return torch.zeros(int(bins[-1]) + 1, dtype=frames.dtype).index_add(0, bins, frames)
