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
    sounds = sounds_of(relevance)
    if not 0 <= index < len(sounds):
        raise SettingError(
            f"the relevance of sound {index} over its own input is unknown",
            hint="attribute(..., through_encoder=True), with a model that takes sound; sounds are counted from 0",
        )
    if not seconds > 0:
        raise SettingError(f"expected a positive number of seconds, got {seconds}", hint="such as 1.0 or 0.1")
    name, (axis, step) = next(iter(relevance.media_times.items()))
    values, times = [], []
    for row, start in sounds[index]:
        scores = relevance.media_inputs[name][row].movedim(axis - 1, 0)
        values.append(scores.reshape(len(scores), -1).sum(-1))
        times.append(start + (torch.arange(len(scores), dtype=torch.float64) + 0.5) * step)
    frames, bins = torch.cat(values), (torch.cat(times) / seconds).long()
    return torch.zeros(int(bins.max()) + 1, dtype=frames.dtype).index_add(0, bins, frames)


def sounds_of(relevance: Relevance) -> list[list[tuple[int, float]]]:
    """Return for each sound the rows of the media tensor that hold it, with the second at which each begins: one row, or
    one per window of a long sound. [] unless relevance was carried on through the encoder of a sound.

    Raises:
        SettingError: which rows belong to which sound is unknown.
    """
    if not relevance.media_times:
        return []
    name, (axis, step) = next(iter(relevance.media_times.items()))
    tensor = relevance.media_inputs[name]
    count = len(tensor)
    placed = [s.interval for s in relevance.spans_of("audio") if s.interval is not None]
    sources = sorted({p.source for p in placed})
    if len(sources) in (0, count):
        return [[(row, 0.0)] for row in range(count)]
    if len(sources) == 1:
        return [[(row, row * tensor.shape[axis] * step) for row in range(count)]]
    if len(placed) == count:
        return [[(row, p.start) for row, p in enumerate(placed) if p.source == source] for source in sources]
    raise SettingError(
        f"{name} has {count} rows for {len(sources)} sounds, and which belong to which is unknown",
        hint="explain a prompt with one sound",
    )
