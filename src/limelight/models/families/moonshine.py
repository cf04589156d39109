"""Moonshine: its states are counted in samples, and it is asked nothing."""

from typing import Any

from limelight.models.families import Family


def state_seconds(config: Any) -> float:
    """Convolutions of steps 64, 3 and 2 on samples at 16 kHz: 24 ms; of the streaming model, of steps 2 and 2 on frames."""
    encoder = getattr(config, "encoder_config", None)
    frame = getattr(encoder, "frame_ms", None)
    return 64 * 3 * 2 / 16000 if frame is None else 2 * 2 * float(frame) / 1000


def transcription(adapter: Any, prompt: str | None, language: str | None) -> str:
    """The beginning of what is said, where the caller knows it."""
    return prompt or ""


FAMILY = Family(
    "moonshine", ("moonshine", "moonshine_streaming"), state_seconds=state_seconds, transcription=transcription
)
