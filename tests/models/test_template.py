"""Positions of the chat template: what is outside the messages' texts."""

from __future__ import annotations

import pytest

import limelight
from limelight.models.template import template_positions
from limelight.types import Span


def hidden(tokens: list[str], texts: list[str], *spans: Span) -> list[str]:
    found = template_positions(tokens, spans or (Span(0, len(tokens), "text"),), texts)
    return [tokens[i] for i in sorted(found)]


def test_role_names_and_markers_are_template_and_the_users_words_are_not() -> None:
    tokens = ["<s>", "USER", ":", " ", "<image>", "<image>", "\n", "Is", " there", " a", " cup", "?", " ASSISTANT", ":"]
    spans = (Span(0, 4, "text"), Span(4, 6, "image", (1, 2)), Span(6, 14, "text"))
    assert hidden(tokens, ["Is there a cup?"], *spans) == ["<s>", "USER", ":", " ", "\n", " ASSISTANT", ":"]


def test_sentencepiece_and_byte_level_spaces_do_not_matter() -> None:
    assert hidden(["▁user", "▁a", "▁cup", "</s>"], ["a cup"]) == ["▁user", "</s>"]


def test_several_turns_are_searched_in_order_and_a_rewritten_text_hides_nothing() -> None:
    tokens = ["U", " hello", " A", " yes", " U", " yes", " A"]
    assert hidden(tokens, ["hello", "yes", "yes"]) == ["U", " A", " U", " A"]
    assert hidden(tokens, ["something else"]) == []
    assert hidden(tokens, ["", " "]) == tokens


@pytest.mark.parametrize(("model", "example"), [("demo-vision", "hat"), ("demo-audio", "dog")])
def test_prompts_of_the_miniatures(model: str, example: str) -> None:
    adapter = limelight.load(model)
    prompt = adapter.prepare("Is it a hat?", limelight.example(example))
    rest = "".join(
        prompt.tokens[i]
        for s in prompt.spans
        if s.modality == "text"
        for i in range(s.start, s.stop)
        if i not in prompt.template
    )
    assert rest.split() == ["Is", "it", "a", "hat?"]
    assert prompt.template
    relevance = limelight.attribute(adapter, prompt)
    assert relevance.template == prompt.template
