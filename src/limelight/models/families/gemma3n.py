"""Gemma 3n: every sound fills the same number of positions, whose length in time the config's strides say."""

from math import prod
from typing import Any

from limelight.models.families import Family

FRAME = 0.01  # seconds between two frames of the feature extractor


def seconds(config: Any) -> float:
    """Of sound that the positions of one medium stand for (30.08 of the published models; silence behind a shorter one)."""
    audio = config.audio_config
    frames = prod(int(stride[0]) for stride in audio.sscp_conv_stride_size) * int(audio.conf_reduction_factor)
    return FRAME * frames * int(config.audio_soft_tokens_per_image)


FAMILY = Family("gemma3n", ("gemma3n",), seconds=seconds)
