"""Rows are read in every shape that people have them in, and a bad one says what is wrong with it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limelight.auditing.rows import Row, read_row
from limelight.errors import DataError
from limelight.types import Clip

URL = "data:image/png;base64," + base64.b64encode(b"\x89PNG and more").decode()
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "First?"}]},
    {"role": "assistant", "content": "One."},
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "Second?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    for name in ("a.png", "b.jpg", "c.wav", "d"):
        (tmp_path / "media" / name).write_bytes(b"bytes")
    (tmp_path / "media" / "empty.png").touch()
    return tmp_path


def test_a_prompt_with_files(folder: Path) -> None:
    (row,) = read_row({"id": 7, "image": "media/a.png", "prompt": "What?", "answer": "A.", "label": [1]}, folder=folder)
    assert (row.id, row.name, row.question, row.answer, row.turn) == ("7", "7", "What?", "A.", 0)
    assert row.media == {"image": [folder / "media/a.png"]}
    assert row.extra == {"label": [1]}
    assert row.messages() == [
        {
            "role": "user",
            "content": [{"type": "image", "image": folder / "media/a.png"}, {"type": "text", "text": "What?"}],
        }
    ]
    assert row.messages({"image": ["opened"]})[0]["content"][0] == {"type": "image", "image": "opened"}


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ({"image": ["media/a.png", "media/b.jpg"]}, {"image": 2}),
        ({"image": "media/d"}, {"image": 1}),  # the reader looks inside
        ({"media": "media/c.wav"}, {"audio": 1}),
        ({"media": {"image": "media/a.png", "audio": "media/c.wav"}}, {"image": 1, "audio": 1}),
        ({"image": URL, "audio": "media/c.wav"}, {"image": 1, "audio": 1}),
        ({"image": {"url": URL}}, {"image": 1}),
        ({"image": {"path": "media/a.png"}}, {"image": 1}),
        ({"image": None}, {}),
        ({}, {}),
    ],
)
def test_media_in_any_shape(folder: Path, given: dict[str, Any], kinds: dict[str, int]) -> None:
    (row,) = read_row({"prompt": "What?", "answer": "A.", **given}, folder=folder, number=4)
    assert {k: len(v) for k, v in row.media.items()} == kinds
    assert row.id == "5"
    files = [x for v in row.media.values() for x in v if isinstance(x, Path)]
    assert all(f.is_relative_to(folder) for f in files)


def test_objects_are_media_too() -> None:
    picture, clip = Image.new("RGB", (4, 4)), Clip((Image.new("RGB", (4, 4)),), (0.0,))
    (row,) = read_row({"prompt": "What?", "answer": "A.", "image": picture, "video": clip})
    assert row.media == {"image": [picture], "video": [clip]}


def test_messages_whose_last_turn_is_the_answer() -> None:
    (row,) = read_row({"messages": TALK, "id": "x"})
    assert (row.answer, row.turn, row.question, row.name) == ("Two.", 1, "Second?", "x")
    assert [t["role"] for t in row.turns] == ["system", "user", "assistant", "user"]
    assert row.media == {"image": [{"bytes": b"\x89PNG and more"}] * 2}
    assert read_row({"messages": TALK[:-1], "answer": "Two.", "id": "x"}) == [row]


def test_every_turn_is_an_answer_behind_what_stood_before_it() -> None:
    first, last = read_row({"messages": TALK, "id": "x", "label": 1}, turns="all")
    assert (first.answer, first.turn, first.name, first.question) == ("One.", 0, "x turn 1", "First?")
    assert [t["role"] for t in first.turns] == ["system", "user"]
    assert len(first.media["image"]) == 1 and first.extra == {"label": 1}
    assert [last] == read_row({"messages": TALK, "id": "x", "label": 1})


@pytest.mark.parametrize("turns", ["last", "all"])
def test_a_row_comes_back_from_its_sample(turns: str) -> None:
    rows = read_row({"messages": TALK, "label": {"a": None}, "token_ids": [5, 6]}, turns=turns)
    assert rows[-1].token_ids == (5, 6)
    for row in rows:
        sample = row.sample()
        json.dumps([sample.prompt, dict(sample.meta)])
        assert Row.of(sample) == row
    changed = [r.sample().prompt for r in read_row({"messages": [*TALK[:-1], {"role": "assistant", "content": "3"}]})]
    assert changed != [r.sample().prompt for r in rows[-1:]]  # another answer is another question to the log


ASKED = {"prompt": "What?", "answer": "A."}
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt or messages, got neither"),
    ({"prompt": "What?"}, "expected the answer's text, got None"),
    ({"prompt": "What?", "messages": TALK}, "got prompt and messages"),
    ({"prompt": ["What?"], "answer": "A."}, "expected text as prompt"),
    ({"prompt": " ", "answer": "A."}, "expected text as prompt"),
    ({"prompt": "What?", "answer": " "}, "expected the answer's text"),
    ({"prompt": "What?", "answer": ["A."]}, "expected the answer's text"),
    ({"messages": "hello", "answer": "A."}, "expected a list of messages"),
    ({"messages": [], "answer": "A."}, "expected a list of messages"),
    ({"messages": TALK, "answer": "A."}, "given twice"),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]},
        "answer's text, got None",
    ),
    ({"messages": [{"role": "tool", "content": "x"}, *TALK]}, "unknown role 'tool'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}], "answer": "A"},
        "contain no text",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "picture"}]}], "answer": "A"}, "unknown content type"),
    ({"messages": [*TALK[:3], {"role": "user", "content": "q"}], "answer": "A", "image": URL}, "their turn is unknown"),
    ({**ASKED, "image": "media/none.png"}, "does not exist"),
    ({**ASKED, "image": "media/empty.png"}, "is empty"),
    ({**ASKED, "image": "media/c.wav"}, "is audio according to its name"),
    ({**ASKED, "image": "https://example.com/x.png"}, "which is not downloaded"),
    ({**ASKED, "image": "data:image/png;base64,%%"}, "invalid base64"),
    ({**ASKED, "image": "data:audio/wav;base64,AAAA"}, "a data URL of type audio was passed as image"),
    ({**ASKED, "image": 3}, "expected a file or a data URL as image, got 3"),
    ({**ASKED, "image": [None]}, "names no image"),
    ({**ASKED, "image": {"name": "x"}}, "expected a file or a data URL as image"),
    ({**ASKED, "media": {"picture": "media/a.png"}}, "unknown media type"),
    ({**ASKED, "id": True}, "expected text or a number as id"),
    ({**ASKED, "id": {}}, "expected text or a number as id"),
    ({**ASKED, "token_ids": []}, "expected a list of token ids"),
    ({**ASKED, "token_ids": [1, 2.0]}, "expected a list of token ids"),
    ({**ASKED, "token_ids": "12"}, "expected a list of token ids"),
]


@pytest.mark.parametrize(("given", "says"), BAD, ids=[s for _, s in BAD])
def test_a_bad_row_is_explained(folder: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_row(given, folder=folder)
    assert caught.value.hint
    assert len(caught.value.message) < 300


def test_an_empty_turn_counts_only_where_it_is_audited() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}]
    assert len(read_row({"messages": talk, "answer": "A."})) == 1
    with pytest.raises(DataError, match="turn 2 of the messages is an empty answer"):
        read_row({"messages": talk, "answer": "A."}, turns="all")
