"""Canary: its decoder prompt, written by the chat template, names the language of speech and text."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from limelight.models.asr_prompt import ids_of, state_seconds, transcription
from limelight.models.families import Family

ENGLISH = "en"  # as the processor takes where none is given


def decoder_prompt(adapter: Any, words: str, tensors: Mapping[str, Any]) -> list[int]:
    """Return the ids of the processor's transcription request."""

    def of_language(code: str) -> list[int]:
        silence = np.zeros(1600, np.float32)  # the text does not depend on the audio
        (text,) = adapter.processor.apply_transcription_request([silence], source_language=code, tokenize=False)
        return list(adapter.tokenizer(text)["input_ids"])

    return ids_of(adapter, words, of_language, ENGLISH)


FAMILY = Family(
    "canary", ("canary",), state_seconds=state_seconds, decoder_prompt=decoder_prompt, transcription=transcription
)
