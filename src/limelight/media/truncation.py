"""Detection of processors that silently truncate audio longer than their window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from limelight.errors import MediaError

TAIL = 0.25  # seconds
SHORT = 0.2  # seconds of audio that may be too short for one position


def window_seconds(processor: Any) -> float | None:
    """Return the longest audio that the feature extractor accepts, in seconds, if it declares one (Whisper: 30 s)."""
    extractor = getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)
    rate = getattr(extractor, "sampling_rate", None)
    for name in ("n_samples", "max_length"):
        value = getattr(extractor, name, None)
        if rate and isinstance(value, int) and value > 0:
            return float(value) / float(rate)
    return None


def check_not_truncated(
    process: Callable[[list[Any]], Mapping[str, Any]],
    sounds: Sequence[npt.NDArray[np.float32]],
    out: Mapping[str, Any],
    rate: int,
    processor: Any,
) -> None:
    """Check that the processor used each clip to its end: replacing the end by noise must change some feature.

    Args:
        process: returns the processor's output for other clips in the same prompt.
        sounds: the original samples, at ``rate`` Hz. ``out``: the processor's output for them.

    Raises:
        MediaError: the end of a clip was cut off; the message gives the maximum length where it is known.
    """
    for i, samples in enumerate(sounds):
        changed = samples.copy()
        tail = changed[-min(len(changed), max(1, round(TAIL * rate))) :]
        tail[:] = np.random.default_rng(0).uniform(-0.5, 0.5, len(tail)).astype(np.float32)
        again = process([changed if j == i else s for j, s in enumerate(sounds)])
        if any(_differ(out[k], again.get(k)) for k in out if k not in ("input_ids", "attention_mask")):
            continue
        most = window_seconds(processor)
        limit = f"; its limit is {most:g} s" if most is not None and most < len(samples) / rate else ""
        raise MediaError(
            f"the audio lasts {len(samples) / rate:.1f} s, and the model's processor cuts off its end{limit}",
            hint="split it into pieces; `limelight transcribe` and limelight.transcribe split at silences",
        )


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape != other.shape or not bool(torch.equal(one, other))
    return False
