"""Tokenising answers from elsewhere as if the model had generated them, and locating earlier answers in a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limelight.errors import PromptError
from limelight.models.adapter import Adapter
from limelight.models.prompts import Message, as_messages, rendered, split_media
from limelight.types import Prompt

_FILLERS = ("0", "?", "a b")  # no answer begins and ends with the tokens of all three


def answer_tokens(adapter: Adapter, messages: Sequence[Message], answer: str) -> tuple[int, ...]:
    """Return the token ids of ``answer`` as a continuation of the prompt of ``messages``, without an end-of-text token.

    If the chat template writes a space between prompt and answer (LLaVA's ``ASSISTANT: Yes``), it is added, since engines
    strip it from the text they return. Prompt and answer are tokenised together, and the prompt's tokens removed.

    Raises:
        PromptError: no tokenizer, an empty answer, or an answer that contains a media placeholder.
    """
    tokenizer = adapter.tokenizer
    if tokenizer is None:
        raise PromptError("this adapter has no tokenizer to tokenise an answer", hint="pass the answer's token_ids")
    if not answer.strip():
        raise PromptError("the answer is empty", hint="leave the row out")
    if adapter.encoder is not None:  # the decoder's prompt is special tokens, not text
        text = answer if answer[0].isspace() else adapter.family.answer_prefix + answer
        return _checked(adapter, tokenizer(text, add_special_tokens=False)["input_ids"])
    turns, _ = split_media(as_messages(messages, None))
    before = rendered(adapter, turns)
    text = answer if answer[0].isspace() else _blank(adapter, turns, before, answer) + answer
    front, whole = (list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (before, before + text))
    ids = whole[len(front) :] if whole[: len(front)] == front else []
    if not ids:  # the tokenizer merges the end of the prompt with the start of the answer
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _checked(adapter, ids)


def _checked(adapter: Adapter, ids: Sequence[int]) -> tuple[int, ...]:
    placeholders = [t for t in ids if t in adapter.placeholders]
    if placeholders:
        raise PromptError(
            f"the answer contains {adapter.tokenizer.decode(placeholders[:1])!r}, a placeholder for media in this model's prompts",
            hint="remove it from the answer",
        )
    return tuple(int(t) for t in ids)


def _blank(adapter: Adapter, turns: list[dict[str, Any]], before: str, answer: str) -> str:
    """Return the white space that the chat template writes between prompt and answer."""
    if not any(getattr(o, "chat_template", None) for o in (adapter.processor, adapter.tokenizer)):
        special = tuple(map(str, getattr(adapter.tokenizer, "all_special_tokens", ())))
        return "" if before[-1:].isspace() or before.endswith(special) else " "
    content = [{"type": "text", "text": answer}]
    whole = rendered(adapter, [*turns, {"role": "assistant", "content": content}], finished=True)
    behind = whole[len(before) :] if whole.startswith(before) else ""
    return behind[: behind.find(answer)] if behind.lstrip().startswith(answer.strip()) and answer in behind else ""


def earlier_answers(adapter: Adapter, messages: Sequence[Message], prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """Return the positions of the assistant's turns in ``prompt``: half-open ranges, in order.

    They are the positions that change when the turn's text is replaced, which works with any chat template. Turns that the
    template omits have no range. Encoder-decoders have no chat template, so the result is empty.
    """
    if adapter.encoder is not None:
        return ()
    turns = as_messages(messages, None)
    ids = prompt.tensors["input_ids"][0].tolist()
    found = []
    for at, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        others = []
        for filler in _FILLERS:
            changed = {"role": "assistant", "content": [{"type": "text", "text": filler}]}
            others.append([*turns[:at], changed, *turns[at + 1 :]])
        place = _changed(adapter, turns, others, ids)
        if place is not None:
            found.append(place)
    return tuple(found)


def _changed(
    adapter: Adapter, turns: list[dict[str, Any]], others: list[list[dict[str, Any]]], ids: list[int]
) -> tuple[int, int] | None:
    """Return the range of ``ids`` that differs in at least one of ``others``, or None.

    The rendered text is compared, which does not need the media, counting positions from the end. If media follow the
    turn, so that text and prompt end differently, complete prompts are compared instead.
    """
    texts = [_text_ids(adapter, t) for t in (turns, *others)]
    start, stop = _difference(texts[0], texts[1:])
    tail = len(texts[0]) - start
    if not tail or ids[-tail:] != texts[0][start:]:
        prompts = [adapter.prepare(t, regions=False).tensors["input_ids"][0].tolist() for t in others]
        start, stop = _difference(ids, prompts)
        return None if start >= stop else (start, stop)
    return None if start >= stop else (len(ids) - tail, len(ids) - len(texts[0]) + stop)


def _text_ids(adapter: Adapter, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    turns, _ = split_media(messages)
    return list(adapter.tokenizer(rendered(adapter, turns), add_special_tokens=False)["input_ids"])


def _difference(ids: list[int], others: Sequence[list[int]]) -> tuple[int, int]:
    """Return the range of ``ids`` left after removing the prefix and the suffix shared with every other list."""
    start, stop = len(ids), 0
    for other in others:
        shortest = min(len(ids), len(other))
        front = next((i for i in range(shortest) if ids[i] != other[i]), shortest)
        back = next((i for i in range(shortest) if ids[-1 - i] != other[-1 - i]), shortest)
        start, stop = min(start, front), max(stop, len(ids) - back)
    return start, stop
