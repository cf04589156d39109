"""What a thinking model answers in a benchmark: maps, shares and curves are the answer's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from limelight.cli.answering import ModelAnswer
from limelight.cli.bench import thoughts_of
from limelight.cli.faithfulness import curves
from limelight.errors import SettingError
from limelight.thinking import MARKERS
from limelight.types import Generation, Prompt, Sample, Span, Step
from tests.test_thinking import Tokenizer


def replied(words: tuple[str, ...], *, prompt: tuple[str, ...] = ("Is there a hat?",), **options: Any) -> Any:
    tokenizer = Tokenizer("</s>", "[THINK]", "[/THINK]")
    asked = tokenizer.encode(*prompt)
    ids = tokenizer.encode(*words)
    steps = tuple(
        Step(i, w, shares={"image": float(k), "text": 1.0 - k}) for k, (i, w) in enumerate(zip(ids, words, strict=True))
    )
    spans = (Span(0, len(asked), "text"),)
    given = Prompt({"input_ids": torch.tensor([asked])}, prompt, spans)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    names = SimpleNamespace(ids="input_ids")
    adapter = SimpleNamespace(tokenizer=tokenizer, device=torch.device("cpu"), model=model, names=names)
    answer = ModelAnswer("m", **options)
    return answer._reply(adapter, Sample("a", "?", meta={"seed": 0}), Generation("", tuple(ids), steps, given))


def test_shares_are_those_of_the_answers_tokens() -> None:
    reply = replied(("[THINK]", "a hat", "[/THINK]", "No", "</s>"))
    assert reply.text == "[THINK]a hat[/THINK]No"
    assert reply.meta["shares"] == {"image": 3.0, "text": -2.0}
    assert reply.meta["tokens"] == 5
    assert "answer_from" not in reply.meta
    plain = replied(("No", "</s>"))
    assert (plain.text, plain.meta["shares"]["image"]) == ("No", 0.0)


def test_thoughts_without_a_marker_in_the_text() -> None:
    opened = ("Is there a hat?", "<think>", "\n")
    cut = replied(("a", " hat"), prompt=opened)
    assert cut.text[cut.meta["answer_from"] :] == ""
    assert "shares" not in cut.meta
    ended = replied(("a hat", "</think>", "No"), prompt=opened)
    assert "answer_from" not in ended.meta
    assert MARKERS.answer(ended.text) == "No"
    by_text = replied(("a hat", "=>", "No"), settings={"after": "=>"})
    assert by_text.text[by_text.meta["answer_from"] :] == "No"
    assert by_text.meta["shares"]["image"] == 2.0
    by_id = replied(("a hat", "=>", "No"), settings={"after": 2})
    assert by_id.text[by_id.meta["answer_from"] :] == "No"
    as_it_is = replied(("<think>", "hat", "</think>", "No"), thoughts=())
    assert as_it_is.text == "<think>hat</think>No"
    assert as_it_is.meta["shares"]["image"] == 1.5


def test_curves_explain_the_answers_first_token() -> None:
    from PIL import Image

    import limelight

    adapter = limelight.load("demo-vision")
    content = [
        {"type": "image", "image": Image.new("RGB", (56, 56), "red")},
        {"type": "text", "text": "Is there a cup?"},
    ]
    messages = [{"role": "user", "content": content}]
    prompt = adapter.prepare(messages)
    thoughts = [5, 6, 7]
    inputs = dict(prompt.tensors)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([thoughts])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        expected = adapter.model(**inputs).logits[0, -1].softmax(-1)
    token = int(expected.argmax())
    found = curves(adapter, messages, token, ("attnlrp",), thoughts=thoughts)["attnlrp"]
    assert found["insertion"][-1] == pytest.approx(float(expected[token]), abs=1e-5)
    assert found["deletion"][0] == pytest.approx(float(expected[token]), abs=1e-5)
    without = curves(adapter, messages, token, ("attnlrp",))["attnlrp"]
    assert without["insertion"][-1] != pytest.approx(found["insertion"][-1], abs=1e-3)


def test_markers_on_the_command_line() -> None:
    assert thoughts_of(None) is None
    assert thoughts_of(["None"]) == ()
    assert thoughts_of(["<a>...</a>", "...</b>"]) == (("<a>", "</a>"), ("", "</b>"))
    for wrong in ("<a>", "<a>..."):
        with pytest.raises(SettingError, match="OPEN"):
            thoughts_of([wrong])
