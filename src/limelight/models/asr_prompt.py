"""Decoder prompts of speech recognisers that are given the language and no previous text (Cohere ASR, Canary)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from limelight.errors import PromptError, SettingError

START = "<|startoftranscript|>"
_LANGUAGE = re.compile(r"<\|([a-z -]+)\|>")
_CODE = re.compile(r"<\|([a-z]{2,3})\|>")


HOP = 0.01  # seconds per frame of the feature extractors


def state_seconds(config: Any) -> float:
    """Return the duration of one encoder state: frames of 10 ms, subsampled by the convolutions."""
    return HOP * int(config.encoder_config.subsampling_factor)


def transcription(adapter: Any, prompt: str | None, language: str | None) -> str:
    """Return ``<|de|>`` for a language, or the decoder prompt that the caller has written out.

    Raises:
        SettingError: previous text, which these models do not read, or a language beside a complete prompt.
    """
    from limelight.compat import TO_LANGUAGE_CODE

    words = (prompt or "").strip()
    if START in words and language is None:
        return words
    if words:
        raise SettingError(
            f"{type(adapter.model).__name__} takes a language and no previous text, got the prompt {words[:40]!r}",
            hint=f"language='en' alone, or the whole decoder prompt with {START} alone",
        )
    name = (language or "").strip().lower()
    return f"<|{TO_LANGUAGE_CODE.get(name, name)}|>" if name else ""


def ids_of(adapter: Any, words: str, of_language: Callable[[str], list[int]], usual: str | None = None) -> list[int]:
    """Return the decoder's ids for ``words``: a complete prompt, ``<|en|>``, or "" for the ``usual`` language.

    Args:
        of_language: language code -> ids, by the model's processor; raises ValueError for others.

    Raises:
        PromptError: other text, no language where there is no usual one, or one that the model does not know.
    """
    name = type(adapter.model).__name__
    if START in words:
        return list(adapter.tokenizer(words, add_special_tokens=False)["input_ids"])
    found = _LANGUAGE.fullmatch(words)
    code = found[1] if found else usual if not words else None
    if code is None:
        what = f"got {words[:40]!r}" if words else "and does not detect it"
        raise PromptError(
            f"{name} takes the language of the speech, {what}",
            hint="limelight.transcribe(..., language='en'), --language en, or the prompt '<|en|>'",
        )
    known = sorted(m[1] for t in adapter.tokenizer.get_vocab() if (m := _CODE.fullmatch(t)) and m[1] != "pnc")
    if code not in known:
        raise PromptError(f"{name} does not know the language {code!r}", hint=f"one of {', '.join(known)}")
    try:
        return [int(i) for i in of_language(code)]
    except (AttributeError, ValueError) as error:
        raise PromptError(f"{name} cannot be asked for {code!r}: {error}", hint="give another language") from error
