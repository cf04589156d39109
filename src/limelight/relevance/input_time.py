"""The time axis of a sound's tensors: log-mel frames ``[n, bins, frames]`` or ``[n, frames, bins]``, raw samples ``[n, samples]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from limelight.models.adapter import Adapter

_BINS = ("num_mel_bins", "input_feat_per_channel", "feature_size")
_SOUND = ("input_features", "input_values", "audio_values")


def time_axis(adapter: Adapter, name: str, values: Tensor) -> tuple[int, float] | None:
    """Return the time axis of a media tensor and the seconds between its entries; None for pictures and unknown layouts.

    Rate and hop are the feature extractor's; without one, 16 kHz and 10 ms.
    """
    if name not in _SOUND:
        return None
    extractor = getattr(adapter.processor, "feature_extractor", None)
    rate = float(getattr(extractor, "sampling_rate", None) or 16000)
    if name != "input_features":
        return (1, 1 / rate) if values.ndim == 2 else None
    bins = {getattr(part, n, None) for part in (extractor, *_configs(adapter.parent_model.config)) for n in _BINS}
    hop = float(getattr(extractor, "hop_length", None) or 160) / rate
    if values.ndim != 3:
        return None
    if values.shape[1] in bins:
        return 2, hop
    return (1, hop) if values.shape[2] in bins else None


def _configs(config: Any) -> Iterator[Any]:
    yield config
    for name in ("audio_config", "encoder_config", "encoder"):
        if (inner := getattr(config, name, None)) is not None and not isinstance(inner, str):
            yield inner


def without_padding(values: Tensor, time: tuple[int, float] | None, inputs: Mapping[str, Any]) -> Tensor:
    """Return values with zeros at the padding of an encoder-decoder's sound, according to its mask ``[n, frames]``."""
    mask = inputs.get("attention_mask")
    if time is None or not isinstance(mask, Tensor) or mask.shape != (values.shape[0], values.shape[time[0]]):
        return values
    shape = [n if axis in (0, time[0]) else 1 for axis, n in enumerate(values.shape)]
    return values * mask.reshape(shape).to(values)
