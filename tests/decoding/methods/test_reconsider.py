"""Unsupported words are taken back: against a slow twin, and case by case."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

import limelight
from limelight.calibration import Calibration
from limelight.decoding.methods.reconsider import Reconsider, reconsider
from limelight.decoding.vocabulary import Vocabulary, _kinds
from limelight.demo.questions import captions
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.types import Generation, Prompt
from tests.slow_twins import reconsider as twin
from tests.tiny import llava


@cache
def adapter() -> Adapter:
    return limelight.load("demo-vision", calibration=None)


@cache
def asked(hint: str, number: int) -> Prompt:
    caption = captions("dev", hint, number + 1)[number]
    return adapter().prepare(caption.text, {"image": caption.scene.image()})


def said(prompts: Any, most: int = 14, **settings: Any) -> list[Generation]:
    return limelight.generate_many(adapter(), None, prompts, strategy=reconsider(**settings), max_new_tokens=most)


@pytest.mark.parametrize(("hint", "number"), [("none", 0), ("none", 1), ("E-wrong", 0), ("E-wrong", 2)])
def test_the_answer_is_the_twins(hint: str, number: int) -> None:
    for threshold, margin in ((4.0, 0.0), (6.0, 2.0), (30.0, 0.0)):  # at 30 nothing is supported
        (got,) = said([asked(hint, number)], threshold=threshold, margin=margin)
        want = twin.answer(
            adapter(), asked(hint, number).tensors, threshold=threshold, margin=margin, possible=1e-3, most=14
        )
        assert list(got.token_ids) == want


def test_an_invented_word_makes_room_for_a_supported_one() -> None:
    prompt = asked("E-wrong", 2)  # a pizza, and the hint says strawberry
    plain = limelight.generate(adapter(), messages=prompt, max_new_tokens=14)
    (got,) = said([prompt])
    assert (plain.text, got.text) == ("A picture of a strawberry.", "A picture of a pizza.")
    changed = [s for s in got.steps if s.intervened]
    assert [s.text for s in changed] == [" pizza"]
    assert changed[0].plain is not None and adapter().tokens([changed[0].plain]) == (" strawberry",)
    assert not any(s.flagged for s in got.steps)
    assert all(s.grounding is not None and s.contributions for s in got.steps) and got.flag["default"]


def test_where_nothing_is_supported_the_sentence_ends() -> None:
    """Words of grammar that led to the invented one are taken back with it."""
    prompt = asked("none", 0)  # a pig
    assert (
        limelight.generate(adapter(), messages=prompt, max_new_tokens=14).text == "A picture of a pig and a mushroom."
    )
    assert said([prompt], threshold=6.0)[0].text == "A picture of a pig."


def test_a_threshold_that_all_words_reach_is_greedy() -> None:
    prompt = asked("E-wrong", 0)
    plain = limelight.generate(adapter(), messages=prompt, max_new_tokens=14)
    for settings in ({"threshold": -99.0}, {"possible": 1.0}):
        (got,) = said([prompt], **settings)
        assert got.token_ids == plain.token_ids and not any(s.intervened for s in got.steps)


def test_rows_of_a_batch_and_limits() -> None:
    prompts = [asked("none", 0), asked("E-wrong", 2), asked("none", 1)]
    together = said(prompts)
    assert [g.token_ids for g in together] == [said([p])[0].token_ids for p in prompts]
    assert [len(g.token_ids) for g in said(prompts, most=3)] == [3, 3, 3]
    (barred,) = limelight.generate_many(
        adapter(), None, prompts[:1], strategy=reconsider(), max_new_tokens=14,
        bad_words_ids=[[together[0].token_ids[4]]],
    )  # fmt: skip
    assert together[0].token_ids[4] not in barred.token_ids


def test_the_models_calibration_sets_the_threshold() -> None:
    prompt = asked("E-wrong", 2)
    try:
        adapter().calibration = Calibration("demo-vision", -99.0, (0.0,), (0.5,))
        assert said([prompt])[0].text == "A picture of a strawberry."
        assert said([prompt], threshold=4.0, margin=0.0)[0].text == "A picture of a pizza."
    finally:
        adapter().calibration = None


def test_what_it_refuses() -> None:
    for settings, word in (
        ({"threshold": math.nan}, "threshold"), ({"margin": -1.0}, "margin"), ({"possible": 2.0}, "possible"),
        ({"composite": "gradient-input"}, "forward mode"),
    ):  # fmt: skip
        with pytest.raises(SettingError, match=word):
            reconsider(**settings)
    with pytest.raises(UnsupportedError, match="cannot sample"):
        limelight.generate(
            adapter(), messages=asked("none", 0), strategy="reconsider", do_sample=True, max_new_tokens=2
        )
    with pytest.raises(UnsupportedError, match="needs the tokenizer"):
        Vocabulary.of(Adapter(llava()), "reconsider")
    own = reconsider(threshold=3.0)
    assert Reconsider(**own.settings()) == own == limelight.strategy("reconsider", threshold=3.0)


@pytest.mark.parametrize(
    ("token", "want"),  # words, opening, ends
    [
        ("Ġcup", (True, True, False)),
        ("▁cup", (True, True, False)),
        ("cup", (True, False, False)),
        ("##ing", (False, False, False)),
        ("猫", (True, True, False)),
        ("Ċ", (False, False, False)),
        ("Ġ", (False, False, False)),
        ("<0x0A>", (False, False, False)),
        (".", (False, False, True)),
        ("Ġ...", (False, False, True)),
        ("。", (False, False, True)),
        (",", (False, False, False)),
        ("", (False, False, False)),
    ],
)
def test_what_tokens_are(token: str, want: tuple[bool, ...]) -> None:
    assert _kinds(token, False, False) == want
    assert _kinds(token, True, True) == (False, False, True)


def test_a_word_begins_behind_what_is_none() -> None:
    found = Vocabulary(*(torch.tensor(x) for x in ([True, True, False], [True, False, False], [False] * 3)))
    assert found.begins(None).tolist() == found.begins(2).tolist() == [True, True, False]
    assert found.begins(1).tolist() == [True, False, False]
