"""Whisper's prompt: ``[<|startofprev|> previous text] <|startoftranscript|> [language, task] <|notimestamps|>``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from limelight.errors import SettingError

START, BEFORE, SILENT = "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"


def language_token(model: Any, language: str) -> str:
    """``<|de|>`` for ``de``, ``<|de|>`` or ``German``.

    Raises:
        SettingError: the model does not know the language, or knows English alone.
    """
    from limelight.compat import TO_LANGUAGE_CODE

    asked = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(asked, asked.removeprefix("<|").removesuffix("|>"))
    known = getattr(model.generation_config, "lang_to_id", None) or {}
    if not known and code == "en":
        return ""
    if f"<|{code}|>" not in known:
        raise SettingError(
            f"this Whisper does not know the language {language!r}",
            hint=f"one of {', '.join(sorted(k[2:-2] for k in known)) or 'en (it knows English alone)'}",
        )
    return f"<|{code}|>"


def transcription(adapter: Any, prompt: str | None, language: str | None) -> str:
    """The words that ask for a transcription: what was said before, or the decoder's prompt with its language."""
    before = (prompt or "").strip()
    if START in before or language is None:
        return before
    token = language_token(adapter.model, language)
    task = "<|transcribe|>" if token else ""
    return f"{f'{BEFORE} {before}' if before else ''}{START}{token}{task}{SILENT}"


def decoder_prompt(adapter: Any, words: str, tensors: Mapping[str, Any]) -> list[int]:
    """``[<|startofprev|> words] <|startoftranscript|> [language, task] <|notimestamps|>``; of the words the last ones that
    fit. The language is the one that the model hears."""
    model, tokenizer = adapter.model, adapter.tokenizer
    config = model.generation_config
    start = tokenizer.convert_tokens_to_ids(START)
    ids = [start]
    if getattr(config, "is_multilingual", False) and getattr(config, "lang_to_id", None):
        with torch.no_grad(), adapter.exclusive():
            heard = model.detect_language(input_features=tensors["input_features"], generation_config=config)
        ids += [int(heard[0]), int(config.task_to_id["transcribe"])]
    ids.append(int(getattr(config, "no_timestamps_token_id", None) or tokenizer.convert_tokens_to_ids(SILENT)))
    if not words:
        return ids
    room = int(model.config.max_target_positions) // 2 - 1
    before = tokenizer(f" {words}", add_special_tokens=False)["input_ids"][-room:]
    return [tokenizer.convert_tokens_to_ids(BEFORE), *before, *ids]
