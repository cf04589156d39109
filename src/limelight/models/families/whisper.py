"""Whisper: duration of its encoder states, its decoder prompt, and checkpoints in CTranslate2's layout."""

from typing import Any

from limelight.models.checkpoints import whisper_ct2
from limelight.models.checkpoints.formats import Convertible
from limelight.models.families import Family
from limelight.models.whisper_prompt import decoder_prompt, transcription

WINDOW = 30.0  # seconds


def state_seconds(config: Any) -> float:
    """Return the duration of one state (1500 states for 30 s)."""
    return WINDOW / int(config.max_source_positions)


FAMILY = Family(
    "whisper",
    ("whisper",),
    state_seconds=state_seconds,
    decoder_prompt=decoder_prompt,
    answer_prefix=" ",
    transcription=transcription,
    published=Convertible(whisper_ct2.claims, whisper_ct2.convert),
)
