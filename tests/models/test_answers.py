"""Answers written elsewhere become the tokens that generating gives, and earlier ones are found in any prompt."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import limelight
from limelight.errors import PromptError
from limelight.models.adapter import Adapter
from limelight.models.answers import answer_tokens, earlier_answers
from tests.tiny import TEMPLATE, tokenizer, vision_processor
from tests.zoo import ZOO

RED = Image.new("RGB", (112, 112), "red")


@pytest.fixture(scope="module")
def demo() -> Adapter:
    return limelight.load("demo-vision")


def user(words: str, pictures: int = 0) -> dict[str, Any]:
    shown = [{"type": "image", "image": RED}] * pictures
    return {"role": "user", "content": [*shown, {"type": "text", "text": words}]}


def said(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


@pytest.mark.parametrize("words", ["Describe the picture.", "Is there a cup in the picture?", "What is there?"])
def test_an_answers_text_is_tokenised_as_it_was_generated(demo: Adapter, words: str) -> None:
    asked = [user(words, 1)]
    answer = limelight.generate(demo, messages=asked, max_new_tokens=24, relevance=False)
    assert answer.text and not answer.text[0].isspace()
    assert answer_tokens(demo, asked, answer.text) == tuple(t for t in answer.token_ids if t != 2)
    assert answer_tokens(demo, asked, " " + answer.text) == answer_tokens(demo, asked, answer.text)


def templated(template: str | None) -> Adapter:
    processor = vision_processor()
    processor.chat_template = template
    return limelight.wrap(ZOO["llava"].build(), processor)


CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' }}{% for i in m['content'] %}{% if i['type'] == 'image' %}<image>"
    "{% else %}{{ i['text'] }}{% endif %}{% endfor %}{{ '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [CHAT, TEMPLATE, None], ids=["chat", "no turns", "none"])
def test_any_template_will_do(template: str | None) -> None:
    adapter = templated(template)
    assert answer_tokens(adapter, [user("what is in the picture ?", 1)], "w9 w10") == (9, 10)


def test_thoughts_are_part_of_the_tokens_though_a_template_drops_them() -> None:
    """Templates that leave out thoughts of finished turns must not hide the blank, or eat the thoughts."""
    dropping = CHAT.replace("{{ i['text'] }}", "{{ i['text'].split('w20')[-1] }}")
    assert answer_tokens(templated(dropping), [user("what ?", 1)], "w11 w20 w9") == (11, 20, 9)


def test_what_cannot_be_an_answer(demo: Adapter) -> None:
    with pytest.raises(PromptError, match="the answer is empty"):
        answer_tokens(demo, [user("What?", 1)], " \n")
    with pytest.raises(PromptError, match="a placeholder for media"):
        answer_tokens(demo, [user("What?", 1)], "A <image> of a cup.")
    with pytest.raises(PromptError, match="no tokenizer"):
        answer_tokens(Adapter(ZOO["llava"].build()), [user("What?", 1)], "w9")


def spelled(adapter: Adapter, messages: list[dict[str, Any]]) -> list[str]:
    prompt = adapter.prepare(messages, regions=False)
    return ["".join(prompt.tokens[a:b]) for a, b in earlier_answers(adapter, messages, prompt)]


@pytest.mark.parametrize(
    "answers",
    [["A picture of a cup.", "yes"], ["0", "0?"], ["?", "a b"], ["a cup a b", "0 is no ball"]],
)
def test_earlier_answers_are_found_for_any_content(demo: Adapter, answers: list[str]) -> None:
    first, second = answers
    turns = [user("Describe the picture.", 1), said(first), user("Is there a cup? yes"), said(second), user("What?")]
    assert [s.strip() for s in spelled(demo, turns)] == answers
    assert spelled(demo, turns[:1]) == []
    media_behind = [user("Describe the picture.", 1), said(first), user("And here?", 1), said(second), user("What?", 2)]
    assert [s.strip() for s in spelled(demo, media_behind)] == answers


def test_a_turn_that_the_template_leaves_out_has_no_place() -> None:
    only_users = CHAT.replace("{% for m in messages %}", "{% for m in messages if m['role'] == 'user' %}")
    turns = [user("what ?", 1), said("w9"), user("is ?")]
    assert spelled(templated(only_users), turns) == []
    assert spelled(templated(CHAT), turns) == ["w9</s>"[:2]]


def test_a_tokenizer_alone_is_enough() -> None:
    processor = tokenizer(chat_template=CHAT)
    adapter = limelight.wrap(ZOO["llava"].build(), processor)
    turns = [user("what ?"), said("w9 w10"), user("is ?")]
    assert spelled(adapter, turns) == ["w9w10"]
    assert answer_tokens(adapter, turns, "w11") == (11,)
