"""Whisper's prompt: ``[<|startofprev|> previous text] <|startoftranscript|> [language, task] <|notimestamps|>``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from limelight.errors import PromptError, SettingError
from limelight.models.detect import special_ids

START, BEFORE, SILENT = "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"


def language_token(model: Any, language: str) -> str:
    """Return the language token ``<|de|>`` for ``de``, ``<|de|>`` or ``German``; "" for English in an English-only model.

    Raises:
        SettingError: the model does not support the language.
    """
    from limelight.compat import TO_LANGUAGE_CODE

    name = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(name, name.removeprefix("<|").removesuffix("|>"))
    known = getattr(model.generation_config, "lang_to_id", None) or {}
    if not known and code == "en":
        return ""
    if f"<|{code}|>" not in known:
        raise SettingError(
            f"this Whisper does not know the language {language!r}",
            hint=f"one of {', '.join(sorted(k[2:-2] for k in known))}" if known else "this model is English-only: en",
        )
    return f"<|{code}|>"


def transcription(adapter: Any, prompt: str | None, language: str | None) -> str:
    """Return the text of a transcription prompt: the previous text, or with a language the complete decoder prompt.

    Raises:
        SettingError: the model does not support the language, or the prompt names one itself.
    """
    before = (prompt or "").strip()
    if START in before:
        if language is not None:
            raise SettingError(
                f"the prompt is the decoder's own ({START}), and language={language!r} is given beside it",
                hint="write the language into the prompt, or give the previous text only",
            )
        return before
    if "{language}" in before and language is None:
        raise SettingError("the prompt has {language}, and no language is given", hint="language='en' fills it in")
    if language is None:
        return before
    before = before.replace("{language}", language)
    token = language_token(adapter.model, language)
    task = "<|transcribe|>" if token else ""
    return f"{f'{BEFORE} {before}' if before else ''}{START}{token}{task}{SILENT}"


def decoder_prompt(adapter: Any, words: str, tensors: Mapping[str, Any]) -> list[int]:
    """Return the ids of ``[<|startofprev|> words] <|startoftranscript|> [language, task] <|notimestamps|>``, where ``words``
    are cut to the last ones that fit, and the language is detected by the model."""
    model, tokenizer = adapter.model, adapter.tokenizer
    config = model.generation_config
    start = tokenizer.convert_tokens_to_ids(START)
    ids = [start]
    if getattr(config, "is_multilingual", False) and getattr(config, "lang_to_id", None):
        with torch.no_grad(), adapter.exclusive():
            language = model.detect_language(input_features=tensors["input_features"], generation_config=config)
        ids += [int(language[0]), int(config.task_to_id["transcribe"])]
    ids.append(int(getattr(config, "no_timestamps_token_id", None) or tokenizer.convert_tokens_to_ids(SILENT)))
    if not words:
        return ids
    room = int(model.config.max_target_positions) // 2 - 1
    before = tokenizer(f" {words}", add_special_tokens=False)["input_ids"][-room:]
    marks = special_ids(tokenizer).intersection(before)
    if marks:
        raise PromptError(
            f"the previous text contains {tokenizer.convert_ids_to_tokens(min(marks))}, which stands for no text",
            hint=f"leave it out; a prompt with {START} is taken as the decoder's own",
        )
    return [tokenizer.convert_tokens_to_ids(BEFORE), *before, *ids]
