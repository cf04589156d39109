"""Moonshine: duration of its encoder states; it takes no transcription prompt."""

from typing import Any

from limelight.errors import SettingError
from limelight.models.families import Family


def state_seconds(config: Any) -> float:
    """Return the duration of one state: convolutions of strides 64, 3 and 2 at 16 kHz (24 ms); in the streaming model,
    strides 2 and 2 on frames."""
    encoder = getattr(config, "encoder_config", None)
    frame = getattr(encoder, "frame_ms", None)
    return 64 * 3 * 2 / 16000 if frame is None else 2 * 2 * float(frame) / 1000


def transcription(adapter: Any, prompt: str | None, language: str | None) -> str:
    """Return the start of the transcript, if the caller gives one.

    Raises:
        SettingError: a language.
    """
    if language is not None:
        raise SettingError(
            f"{type(adapter.model).__name__} takes no language, got {language!r}",
            hint="leave it out; each Moonshine is trained for one language",
        )
    return prompt or ""


FAMILY = Family(
    "moonshine", ("moonshine", "moonshine_streaming"), state_seconds=state_seconds, transcription=transcription
)
