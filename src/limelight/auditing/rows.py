"""Rows to audit: prompt, media, and finished answer.

    {"id": "7", "image": "photos/7.jpg", "prompt": "Describe the picture.", "answer": "A dog on a sofa."}
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A dog."}]}

``image``, ``audio`` and ``video`` (or ``media``) contain a file, a data URL, or a list of them; relative file names refer to
the folder of the rows' file. The answer is in ``answer`` or in the last turn of ``messages``. ``token_ids`` are the answer's
token ids, if the engine reported them. Other columns are copied to the output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limelight.errors import DataError, LimelightError, SettingError
from limelight.media.arguments import KINDS, by_kind
from limelight.media.image import kind_of
from limelight.models.prompts import as_messages, split_media
from limelight.types import Sample

TURNS = ("last", "all")
_HELD = frozenset({"bytes", "array"})
_ROLES = ("system", "user", "assistant")
_OWN = frozenset({"id", "prompt", "messages", "answer", "token_ids", "media", *KINDS})


@dataclass(frozen=True)
class Row:
    """One answer to audit.

    Attributes:
        id: id of the row that contains it.
        turns: the conversation before the answer, with media as bare items; ``media``: the media by kind, in order.
        token_ids: of the answer (None: its text is tokenised).
        turn: number of earlier answers in the conversation.
        last: whether it is the row's last answer.
        extra: other columns of the row, JSON values.
    """

    id: str
    turns: tuple[Mapping[str, Any], ...]
    answer: str
    media: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    token_ids: tuple[int, ...] | None = None
    turn: int = 0
    last: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A name that is unique among all answers if the rows' ids are unique."""
        return self.id if self.last else f"{self.id} turn {self.turn + 1}"

    @property
    def question(self) -> str:
        """Text of the last user turn."""
        last = next(t for t in reversed(self.turns) if t["role"] == "user")
        return " ".join(i["text"] for i in last["content"] if i["type"] == "text").strip()

    def messages(self, opened: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        """Return the turns with their media, as expected by ``Adapter.prepare``; ``opened``: decoded media to use instead."""
        left = {k: list(v) for k, v in (self.media if opened is None else opened).items()}
        return [
            {
                "role": t["role"],
                "content": [
                    dict(i) if i["type"] == "text" else {"type": i["type"], i["type"]: left[i["type"]].pop(0)}
                    for i in t["content"]
                ],
            }
            for t in self.turns
        ]

    def sample(self) -> Sample:
        """Convert to a benchmark sample, whose prompt contains everything that the scores depend on, except the media."""
        inputs: dict[str, Any] = {"turns": list(self.turns), "answer": self.answer}
        if self.token_ids is not None:
            inputs["token_ids"] = list(self.token_ids)
        meta = {"id": self.id, "turn": self.turn, "last": self.last, "extra": dict(self.extra)}
        return Sample(self.name, json.dumps(inputs, ensure_ascii=False, sort_keys=True), dict(self.media), meta=meta)

    @classmethod
    def of(cls, sample: Sample) -> Row:
        """Convert the result of :meth:`sample` back."""
        inputs = json.loads(sample.prompt)
        ids = inputs.get("token_ids")
        return cls(
            str(sample.meta["id"]), tuple(inputs["turns"]), inputs["answer"], sample.media,
            None if ids is None else tuple(ids), int(sample.meta["turn"]), bool(sample.meta["last"]), sample.meta["extra"],
        )  # fmt: skip


def check_turns(turns: str) -> None:
    """Raise SettingError unless it is one of :data:`TURNS`."""
    if turns not in TURNS:
        raise SettingError(f"unknown turns {turns!r}", hint=" or ".join(TURNS))


def read_row(
    value: Mapping[str, Any], *, number: int = 0, folder: Path | None = None, turns: str = "last"
) -> list[Row]:
    """Return the answers of one row: the last, or with ``turns="all"`` every answer of its conversation.

    Args:
        number: index of the row; a row without an id gets ``number + 1``.
        folder: folder that relative file names refer to (None: the working directory).

    Raises:
        DataError: no question, no answer, two answers, or missing media.
    """
    try:
        return _read(value, number, folder, turns)
    except DataError:
        raise
    except LimelightError as error:
        raise DataError(error.message, hint=error.hint) from error


def _read(value: Mapping[str, Any], number: int, folder: Path | None, turns: str) -> list[Row]:
    name = value.get("id", number + 1)
    if isinstance(name, bool) or not isinstance(name, (str, int, float)) or not str(name).strip():
        raise DataError(f"expected text or a number as id, got {_short(name)}", hint="omit it to use the row's number")
    request, answer = _conversation(value)
    extra = {str(k): v for k, v in value.items() if k not in _OWN}
    ids = _token_ids(value.get("token_ids"))
    messages = as_messages(request, _loose(value, request))
    bare, found = split_media(messages)
    clean = [{"role": t["role"], "content": [_bare(i) for i in t["content"]]} for t in bare]
    found = {k: [_located(k, x, folder) for x in v] for k, v in found.items() if v}
    _check_roles(clean)
    rows = [_row(str(name), clean, len(clean), answer, found, ids, extra)]
    if turns == "all":
        answers = {i: _text(t) for i, t in enumerate(clean) if t["role"] == "assistant"}
        if empty := [i for i, text in answers.items() if not text.strip()]:
            raise DataError(
                f"turn {empty[0] + 1} of the messages is an empty answer", hint="turns=last only audits the last one"
            )
        rows = [_row(str(name), clean, i, text, found, None, extra) for i, text in answers.items()] + rows
    return rows


def _row(
    name: str,
    turns: Sequence[Mapping[str, Any]],
    at: int,
    answer: str,
    media: Mapping[str, Sequence[Any]],
    ids: tuple[int, ...] | None,
    extra: Mapping[str, Any],
) -> Row:
    """Return the answer that follows the first ``at`` turns, with their media."""
    before = tuple(turns[:at])
    shown = [i["type"] for t in before for i in t["content"]]
    kept = {k: list(v[: shown.count(k)]) for k, v in media.items() if shown.count(k)}
    turn = sum(t["role"] == "assistant" for t in before)
    return Row(name, before, answer, kept, ids, turn, at == len(turns), extra)


def _conversation(value: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the request, as messages or text, and the answer."""
    given = [k for k in ("prompt", "messages") if value.get(k) is not None]
    if len(given) != 1:
        raise DataError(
            f"expected prompt or messages, got {' and '.join(given) or 'neither'}",
            hint="a row has {'prompt': text} or {'messages': [{'role': ..., 'content': ...}, ...]}",
        )
    request, answer = value[given[0]], value.get("answer")
    if given == ["prompt"]:
        media = any(value.get(k) is not None for k in ("media", "audio"))
        if not isinstance(request, str) or not (request.strip() or media):
            raise DataError(
                f"expected text as prompt, got {_short(request)}",
                hint="use messages for several turns; only audio needs no prompt",
            )
    else:
        if not isinstance(request, (list, tuple)) or not request or not all(isinstance(m, Mapping) for m in request):
            raise DataError(
                f"expected a list of messages, got {_short(request)}", hint="[{'role': ..., 'content': ...}, ...]"
            )
        last = request[-1]
        if last.get("role") == "assistant":
            if answer is not None:
                raise DataError(
                    "the answer is given twice: as answer, and as the last turn of the messages",
                    hint="omit one of them",
                )
            request, answer = request[:-1], _answer_text(last.get("content"))
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"expected the answer's text, got {_short(answer)}",
            hint="give 'answer', or end the messages with an assistant turn",
        )
    return request, answer


def _answer_text(content: Any) -> Any:
    """Return the text of an assistant turn; other content is returned unchanged, for the error message."""
    if isinstance(content, (list, tuple)) and all(
        isinstance(i, Mapping) and isinstance(i.get("text"), str) for i in content
    ):
        return "".join(i["text"] for i in content)
    return content


def _token_ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not value or any(type(t) is not int or t < 0 for t in value):
        raise DataError(f"expected a list of token ids, got {_short(value)}", hint="leave token_ids out")
    return tuple(value)


def _loose(value: Mapping[str, Any], request: Any) -> dict[str, list[Any]]:
    """Return the media that are not inside the messages, by kind."""
    loose = by_kind(value.get("media"))
    for kind in KINDS:
        loose[kind] += by_kind({kind: value[kind]})[kind] if value.get(kind) is not None else []
    users = 1 if isinstance(request, str) else sum(m.get("role", "user") == "user" for m in request)
    if users > 1 and any(loose.values()):
        open_items = [i for m in request for i in _items(m) if isinstance(i, Mapping) and len(i) == 1 and "type" in i]
        if len(open_items) < sum(map(len, loose.values())):
            raise DataError(
                "the row has media outside of its messages, which have several user turns, so their turn is unknown",
                hint="put {'type': 'image'} or the image itself into the content of its turn",
            )
    return loose


def _items(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _bare(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": item["text"]} if item["type"] == "text" else {"type": item["type"]}


def _text(turn: Mapping[str, Any]) -> str:
    return "".join(i["text"] for i in turn["content"] if i["type"] == "text")


def _check_roles(turns: Sequence[dict[str, Any]]) -> None:
    for turn in turns:
        turn["role"] = "system" if turn["role"] == "developer" else turn["role"]
        if turn["role"] not in _ROLES:
            raise DataError(f"unknown role {turn['role']!r} of a message", hint=", ".join(_ROLES))
    users = [t for t in turns if t["role"] == "user"]
    audio = any(i["type"] == "audio" for t in users for i in t["content"])  # a transcription needs no question
    if not audio and not any(_text(t).strip() for t in users):
        raise DataError("the user's turns contain no text", hint="give the question; only audio needs none")


def _located(kind: str, medium: Any, folder: Path | None) -> Any:
    """Validate a medium: return a file's path, bytes as :func:`limelight.media.worker.read` takes them, or the object."""
    if isinstance(medium, Mapping) and isinstance(medium.get("path"), (str, Path)) and medium.get("bytes") is None:
        medium = medium["path"]
    if isinstance(medium, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(medium)}
    if (
        medium is None
        or isinstance(medium, (bool, int, float))
        or (isinstance(medium, Mapping) and not _HELD & set(medium))
    ):
        raise DataError(f"expected a file or a data URL as {kind}, got {_short(medium)}", hint="such as 'photos/7.jpg'")
    if not isinstance(medium, (str, Path)):
        return medium
    if "://" in str(medium):
        raise DataError(
            f"its {kind} {_short(medium)} is a URL, which is not downloaded", hint="download it, or use a data URL"
        )
    path = Path(medium) if folder is None else folder / medium
    if not path.is_file():
        raise DataError(
            f"its {kind} {path} does not exist", hint="relative names refer to the folder of the rows' file"
        )
    if not path.stat().st_size:
        raise DataError(f"its {kind} {path} is empty (0 bytes)", hint="get the file again")
    try:
        known = kind_of(path)
    except LimelightError:  # unknown file extension: the reader detects the format
        return path
    if known != kind:
        raise DataError(f"its {kind} {path} is {known} according to its name", hint=f"pass it as {known!r}")
    return path


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
