"""Cohere ASR: its decoder prompt names the language, which it does not detect."""

from collections.abc import Mapping
from typing import Any

from limelight.models.asr_prompt import ids_of, state_seconds, transcription
from limelight.models.families import Family


def decoder_prompt(adapter: Any, words: str, tensors: Mapping[str, Any]) -> list[int]:
    """Return the ids that the processor builds for a language."""
    return ids_of(adapter, words, lambda code: list(adapter.processor.get_decoder_prompt_ids(language=code)))


FAMILY = Family(
    "cohere_asr",
    ("cohere_asr",),
    state_seconds=state_seconds,
    decoder_prompt=decoder_prompt,
    transcription=transcription,
)
