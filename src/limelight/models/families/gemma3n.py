"""Gemma 3n: every audio input has the same number of positions, whose duration follows from the config's strides."""

from math import prod
from typing import Any

from limelight.models.families import Family

FRAME = 0.01  # seconds between two frames of the feature extractor


def seconds(config: Any) -> float:
    """Return the duration of one audio input's positions (30.08 s in the published models; shorter audio is padded)."""
    audio = config.audio_config
    frames = prod(int(stride[0]) for stride in audio.sscp_conv_stride_size) * int(audio.conf_reduction_factor)
    return FRAME * frames * int(config.audio_soft_tokens_per_image)


FAMILY = Family("gemma3n", ("gemma3n",), seconds=seconds)
