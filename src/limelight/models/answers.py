"""Answers that were written elsewhere, as the model would have generated them: their tokens, and where earlier ones stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from limelight.errors import PromptError
from limelight.models.prompts import Message, Reader, as_messages, rendered, split_media
from limelight.types import Prompt

_FILLERS = ("0", "?", "a b")  # no answer begins and ends with the tokens of all three


class PromptReader(Reader, Protocol):
    def prepare(self, messages: Any, media: Any = None, *, regions: bool = True) -> Prompt: ...


def answer_tokens(adapter: Reader, messages: Sequence[Message], answer: str) -> tuple[int, ...]:
    """Token ids of ``answer`` behind the prompt that ``messages`` make, without an end-of-text token.

    A blank between prompt and answer is put there where the chat template writes one (LLaVA's ``ASSISTANT: Yes``), since
    engines leave it out of the text they return. The tokens are those of prompt and answer tokenised together, less the
    prompt's.

    Raises:
        PromptError: no tokenizer, an empty answer, or one that holds a placeholder of the model's media.
    """
    tokenizer = adapter.tokenizer
    if tokenizer is None:
        raise PromptError("this adapter has no tokenizer to read an answer with", hint="give the answer's token_ids")
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
    if not ids:  # the tokenizer joins what generating keeps apart
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _checked(adapter, ids)


def _checked(adapter: Reader, ids: Sequence[int]) -> tuple[int, ...]:
    placeholders = [t for t in ids if t in adapter.placeholders]
    if placeholders:
        raise PromptError(
            f"the answer contains {adapter.tokenizer.decode(placeholders[:1])!r}, a placeholder for media in this model's prompts",
            hint="remove it from the answer",
        )
    return tuple(int(t) for t in ids)


def _blank(adapter: Reader, turns: list[dict[str, Any]], before: str, answer: str) -> str:
    """What stands between the prompt's last character and the answer's first."""
    if not any(getattr(o, "chat_template", None) for o in (adapter.processor, adapter.tokenizer)):
        return "" if before[-1:].isspace() or before.endswith(_special(adapter)) else " "
    said = [{"type": "text", "text": answer}]
    whole = rendered(adapter, [*turns, {"role": "assistant", "content": said}], finished=True)
    behind = whole[len(before) :] if whole.startswith(before) else ""
    return behind[: behind.find(answer)] if behind.lstrip().startswith(answer.strip()) and answer in behind else ""


def _special(adapter: Reader) -> tuple[str, ...]:
    return tuple(str(t) for t in getattr(adapter.tokenizer, "all_special_tokens", ()))


def earlier_answers(adapter: PromptReader, messages: Sequence[Message], prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """Where the assistant's turns in ``messages`` stand in ``prompt``: half-open runs of positions, in order.

    They are what changes when another text is put in their place, so that any chat template will do. A turn that the
    template leaves out has none; an encoder-decoder has no chat template, and none of them.
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
    adapter: PromptReader, turns: list[dict[str, Any]], others: list[list[dict[str, Any]]], ids: list[int]
) -> tuple[int, int] | None:
    """Positions of ``ids`` that differ in some of the ``others``.

    The text is compared, which needs no media, and counted from its end; where media stand behind the turn, so that
    positions cannot be counted that way, whole prompts are.
    """
    texts = [_text_ids(adapter, t) for t in (turns, *others)]
    start, stop = _difference(texts[0], texts[1:])
    tail = len(texts[0]) - start
    if not tail or ids[-tail:] != texts[0][start:]:
        prompts = [adapter.prepare(t, regions=False).tensors["input_ids"][0].tolist() for t in others]
        start, stop = _difference(ids, prompts)
        return None if start >= stop else (start, stop)
    return None if start >= stop else (len(ids) - tail, len(ids) - len(texts[0]) + stop)


def _text_ids(adapter: Reader, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    turns, _ = split_media(messages)
    return list(adapter.tokenizer(rendered(adapter, turns), add_special_tokens=False)["input_ids"])


def _difference(ids: list[int], others: Sequence[list[int]]) -> tuple[int, int]:
    """The run of ``ids`` that is not in the same place, from either end, in every other."""
    start, stop = len(ids), 0
    for other in others:
        shortest = min(len(ids), len(other))
        front = next((i for i in range(shortest) if ids[i] != other[i]), shortest)
        back = next((i for i in range(shortest) if ids[-1 - i] != other[-1 - i]), shortest)
        start, stop = min(start, front), max(stop, len(ids) - back)
    return start, stop
