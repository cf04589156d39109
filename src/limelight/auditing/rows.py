"""Rows to audit: what was asked, what was looked at, and what was answered.

    {"id": "7", "image": "photos/7.jpg", "prompt": "Describe the picture.", "answer": "A dog on a sofa."}
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A dog."}]}

``image``, ``audio`` and ``video`` (or ``media``) hold a file, a data URL, or a list of them; files are looked for beside the
file of the rows. ``answer`` may stand beside ``messages``, or be their last turn. ``token_ids``: the answer's own, where the
engine told them. Further columns are kept and written out again.
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
        id: of the row that it came in. ``turn``: how many answers stand before it in its conversation; ``last``: whether it
            is that row's own answer.
        turns: what stands before the answer, media as bare items; ``media``: those by kind, in order.
        token_ids: of the answer, None: to be told from its text.
        extra: further columns of the row, JSON values.
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
        """Unique among the answers of unique rows."""
        return self.id if self.last else f"{self.id} turn {self.turn + 1}"

    @property
    def question(self) -> str:
        """The words of the last user turn."""
        last = next(t for t in reversed(self.turns) if t["role"] == "user")
        return " ".join(i["text"] for i in last["content"] if i["type"] == "text").strip()

    def messages(self, opened: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        """The turns as ``Adapter.prepare`` takes them, with the media in their places; ``opened``: decoded ones."""
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
        """As the runner of benchmarks takes it. The prompt holds all that the scores depend on, media aside."""
        asked: dict[str, Any] = {"turns": list(self.turns), "answer": self.answer}
        if self.token_ids is not None:
            asked["token_ids"] = list(self.token_ids)
        meta = {"id": self.id, "turn": self.turn, "last": self.last, "extra": dict(self.extra)}
        return Sample(self.name, json.dumps(asked, ensure_ascii=False, sort_keys=True), dict(self.media), meta=meta)

    @classmethod
    def of(cls, sample: Sample) -> Row:
        """Back from :meth:`sample`."""
        asked = json.loads(sample.prompt)
        ids = asked.get("token_ids")
        return cls(
            str(sample.meta["id"]), tuple(asked["turns"]), asked["answer"], sample.media,
            None if ids is None else tuple(ids), int(sample.meta["turn"]), bool(sample.meta["last"]), sample.meta["extra"],
        )  # fmt: skip


def check_turns(turns: str) -> None:
    """Raise SettingError unless it is one of :data:`TURNS`."""
    if turns not in TURNS:
        raise SettingError(f"unknown turns {turns!r}", hint=" or ".join(TURNS))


def read_row(
    value: Mapping[str, Any], *, number: int = 0, folder: Path | None = None, turns: str = "last"
) -> list[Row]:
    """The answers of one row: its last, or with ``turns="all"`` every answer of its conversation.

    Args:
        number: how many rows stand before it: the id of a row without one is ``number + 1``.
        folder: where relative file names begin; None: the working directory.

    Raises:
        DataError: no question, no answer, one that is given twice, or media that are not there.
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
        raise DataError(
            f"expected text or a number as id, got {_short(name)}", hint="leave it out for the row's number"
        )
    asked, answer = _conversation(value)
    extra = {str(k): v for k, v in value.items() if k not in _OWN}
    ids = _token_ids(value.get("token_ids"))
    messages = as_messages(asked, _loose(value, asked))
    bare, found = split_media(messages)
    clean = [{"role": t["role"], "content": [_bare(i) for i in t["content"]]} for t in bare]
    found = {k: [_located(k, x, folder) for x in v] for k, v in found.items() if v}
    _check_roles(clean)
    rows = [_row(str(name), clean, len(clean), answer, found, ids, extra)]
    if turns == "all":
        said = [i for i, t in enumerate(clean) if t["role"] == "assistant"]
        texts = [_words(clean[i]) for i in said]
        if empty := [i for i, text in zip(said, texts, strict=True) if not text.strip()]:
            raise DataError(
                f"turn {empty[0] + 1} of the messages is an empty answer", hint="turns=last looks at the last one"
            )
        rows = [_row(str(name), clean, i, t, found, None, extra) for i, t in zip(said, texts, strict=True)] + rows
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
    """The answer behind the first ``at`` turns, with the media that these show."""
    before = tuple(turns[:at])
    shown = [i["type"] for t in before for i in t["content"]]
    kept = {k: list(v[: shown.count(k)]) for k, v in media.items() if shown.count(k)}
    turn = sum(t["role"] == "assistant" for t in before)
    return Row(name, before, answer, kept, ids, turn, at == len(turns), extra)


def _conversation(value: Mapping[str, Any]) -> tuple[Any, str]:
    """What was asked, as messages or words, and the answer."""
    given = [k for k in ("prompt", "messages") if value.get(k) is not None]
    if len(given) != 1:
        raise DataError(
            f"expected prompt or messages, got {' and '.join(given) or 'neither'}",
            hint="a row has {'prompt': words} or {'messages': [{'role': ..., 'content': ...}, ...]}",
        )
    asked, answer = value[given[0]], value.get("answer")
    if given == ["prompt"]:
        media = any(value.get(k) is not None for k in ("media", "audio"))
        if not isinstance(asked, str) or not (asked.strip() or media):
            raise DataError(
                f"expected text as prompt, got {_short(asked)}",
                hint="several turns go into messages; only audio needs no prompt",
            )
    else:
        if not isinstance(asked, (list, tuple)) or not asked or not all(isinstance(m, Mapping) for m in asked):
            raise DataError(
                f"expected a list of messages, got {_short(asked)}", hint="[{'role': ..., 'content': ...}, ...]"
            )
        last = asked[-1]
        if last.get("role") == "assistant":
            if answer is not None:
                raise DataError(
                    "the answer is given twice: as answer, and as the last turn of the messages", hint="leave one out"
                )
            asked, answer = asked[:-1], _said(last.get("content"))
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"expected the answer's text, got {_short(answer)}",
            hint="give 'answer', or let the messages end with a turn of the assistant",
        )
    return asked, answer


def _said(content: Any) -> Any:
    """The words of an assistant's turn; what is no text stays as it is, for the error."""
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


def _loose(value: Mapping[str, Any], asked: Any) -> dict[str, list[Any]]:
    """The media that stand beside the words."""
    loose = by_kind(value.get("media"))
    for kind in KINDS:
        loose[kind] += by_kind({kind: value[kind]})[kind] if value.get(kind) is not None else []
    users = 1 if isinstance(asked, str) else sum(m.get("role", "user") == "user" for m in asked)
    if users > 1 and any(loose.values()):
        open_items = [i for m in asked for i in _items(m) if isinstance(i, Mapping) and len(i) == 1 and "type" in i]
        if len(open_items) < sum(map(len, loose.values())):
            raise DataError(
                "the row has media beside messages of several turns, and nothing says which turn shows them",
                hint="put {'type': 'image'} into the content of that turn, or the picture itself",
            )
    return loose


def _items(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, (list, tuple)) else ()


def _bare(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": item["text"]} if item["type"] == "text" else {"type": item["type"]}


def _words(turn: Mapping[str, Any]) -> str:
    return "".join(i["text"] for i in turn["content"] if i["type"] == "text")


def _check_roles(turns: Sequence[dict[str, Any]]) -> None:
    for turn in turns:
        turn["role"] = "system" if turn["role"] == "developer" else turn["role"]
        if turn["role"] not in _ROLES:
            raise DataError(f"unknown role {turn['role']!r} of a message", hint=", ".join(_ROLES))
    asked = [t for t in turns if t["role"] == "user"]
    audio = any(i["type"] == "audio" for t in asked for i in t["content"])  # transcribed without a question
    if not audio and not any(_words(t).strip() for t in asked):
        raise DataError("the user's turns contain no text", hint="give the question; only audio needs none")


def _located(kind: str, medium: Any, folder: Path | None) -> Any:
    """A file's path, checked; bytes as :func:`limelight.media.worker.read` takes them; an object as it is."""
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
            f"its {kind} {_short(medium)} is a URL, and nothing is downloaded", hint="download it, or use a data URL"
        )
    path = Path(medium) if folder is None else folder / medium
    if not path.is_file():
        raise DataError(f"its {kind} {path} does not exist", hint="relative names begin at the folder of the rows")
    if not path.stat().st_size:
        raise DataError(f"its {kind} {path} is empty (0 bytes)", hint="get the file again")
    try:
        known = kind_of(path)
    except LimelightError:  # an unusual name: the reader will look inside
        return path
    if known != kind:
        raise DataError(f"its {kind} {path} is {known} by its name", hint=f"give it as {known!r}")
    return path


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
