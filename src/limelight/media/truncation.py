"""Did the model's processor take in the whole sound? Many cut what is longer than their window, and say nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from limelight.errors import MediaError

TAIL = 0.25  # seconds


def window_seconds(processor: Any) -> float | None:
    """The longest sound that the feature extractor takes at once, where it tells (Whisper's: 30 s)."""
    extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    rate = getattr(extractor, "sampling_rate", None)
    for name in ("n_samples", "max_length"):
        value = getattr(extractor, name, None)
        if rate and isinstance(value, int) and value > 0:
            return float(value) / float(rate)
    return None


def check_heard(
    process: Callable[[list[Any]], Mapping[str, Any]],
    sounds: Sequence[npt.NDArray[np.float32]],
    out: Mapping[str, Any],
    rate: int,
    processor: Any,
) -> None:
    """Replace the end of each sound by noise: when no feature changes, the processor never looked at it.

    Args:
        process: the processor's output for other sounds in the same prompt.
        sounds: the samples it was given, at ``rate`` Hz. ``out``: what it made of them.

    Raises:
        MediaError: the end of a sound was cut off, with the length that fits where it is known.
    """
    for i, samples in enumerate(sounds):
        changed = samples.copy()
        tail = changed[-min(len(changed), max(1, round(TAIL * rate))) :]
        tail[:] = np.random.default_rng(0).uniform(-0.5, 0.5, len(tail)).astype(np.float32)
        again = process([changed if j == i else s for j, s in enumerate(sounds)])
        if any(_differ(out[k], again.get(k)) for k in out if k not in ("input_ids", "attention_mask")):
            continue
        most = window_seconds(processor)
        told = f"; it takes {most:g} s at once" if most is not None and most < len(samples) / rate else ""
        raise MediaError(
            f"the sound lasts {len(samples) / rate:.1f} s, and the model's processor cuts off its end{told}",
            hint="cut it into pieces; `limelight transcribe` and limelight.transcribe do so at silences",
        )


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape != other.shape or not bool(torch.equal(one, other))
    return False
