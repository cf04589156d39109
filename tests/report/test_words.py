"""Tokens to words, words to relevance, answers side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from limelight.errors import SettingError
from limelight.report.words import (
    CONTRIBUTIONS,
    SHARES,
    aligned,
    choose,
    known_parts,
    perceptual,
    rather_than,
    sentences,
    text_words,
    word_contributions,
    word_flagged,
    word_grounding,
    word_parts,
    word_relevance,
    word_shares,
    words,
)
from limelight.types import Generation, Relevance
from tests.report.examples import generation, prompt, relevance

PROMPT = prompt(("image", 16, (4, 4), None))


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        ([" Yes", ",", " there", " is"], None, ["Yes", ",", "there", "is"]),
        (["str", "aw", "berry", " pie"], None, ["strawberry", "pie"]),
        (["straw", "berry", "pie"], "strawberry pie", ["strawberry", "pie"]),  # a SentencePiece spelling has no spaces
        ([" don", "'", "t", "!"], None, ["don't", "!"]),
        ([" A", " \n", "\n", " B"], None, ["A", "B"]),
        (["�", "�", " fox"], "🦊 fox", ["🦊", "fox"]),  # a character in two byte tokens
        ([" a", "�", "�"], "a 🦊", ["a", "🦊"]),
        (["猫", "と", "犬"], None, ["猫", "と", "犬"]),
        ([], "", []),
    ],
)
def test_words_follow_the_text(pieces: list[str], text: str | None, expected: list[str]) -> None:
    said = generation(PROMPT, pieces, text=text, details=False, special=["</s>"])
    found = words(said)
    assert [w.text for w in found] == expected
    assert "".join((" " if w.space and i else "") + w.text for i, w in enumerate(found)) == " ".join(said.text.split())
    for before, after in itertools.pairwise(found):
        assert before.stop <= after.start
    assert all(0 <= w.start < w.stop <= len(pieces) for w in found)


def test_a_special_token_in_the_middle_is_no_word() -> None:
    said = generation(PROMPT, [" one", "<pause>", " two"], text="one two", details=False)
    assert [(w.text, w.start, w.stop) for w in words(said)] == [("one", 0, 1), ("two", 2, 3)]


def test_relevance_of_a_word_is_the_sum_over_its_tokens() -> None:
    said = generation(PROMPT, [" straw", "berry", " pie"])
    word = words(said)[0]
    assert (word.start, word.stop) == (0, 2)
    summed = word_relevance(said, word)
    first, second = (s.relevance for s in said.steps[:2])
    assert summed is not None
    assert first is not None
    assert second is not None
    expected = second.scores.clone()
    expected[: len(first.scores)] += first.scores
    assert torch.equal(summed.scores, expected)
    assert summed.logit == first.logit + second.logit
    assert summed.target_token == "strawberry"
    assert word_shares(said, word) == summed.shares()


def test_shares_without_relevance() -> None:
    said = generation(PROMPT, [" pie"], details=False)
    word = words(said)[0]
    assert word_relevance(said, word) is None
    assert word_shares(said, word) == {}
    assert perceptual({}) is None
    assert perceptual({"text": 0.25, "image": 0.5, "audio": 0.25}) == 0.75


def test_contributions_are_the_meters_and_shares_the_relevances() -> None:
    both = generation(PROMPT, [" A", " pie"], strategy="meter")
    word = words(both)[1]
    assert word_contributions(both, word) == {"text": 0.75, "image": 0.25}
    assert word_shares(both, word) == word_parts(both, word) == both.steps[1].shares != word_contributions(both, word)
    alone = generation(PROMPT, [" A", " pie"], strategy="meter", details=False)
    assert word_shares(alone, word) == {}
    assert word_parts(alone, word) == word_contributions(alone, word)
    bare = generation(PROMPT, [" A", " pie"], details=False)
    assert word_parts(bare, word) == {}
    assert [known_parts(g) for g in (both, alone, bare)] == [SHARES, CONTRIBUTIONS, ""]


def test_choose() -> None:
    said = generation(PROMPT, [" Yes", ",", " a", " cup", " a"])
    assert choose(said, 1).text == "Yes"
    assert choose(said, "-1").start == 4
    assert choose(said, "CUP").text == "cup"
    best = max((w for w in words(said) if not w.punctuation), key=lambda w: word_shares(said, w)["image"])
    assert choose(said) == best
    for wrong in (0, 9, -9, "dog"):
        with pytest.raises(SettingError, match="no word") as caught:
            choose(said, wrong)
        assert "4:cup" in caught.value.hint
    with pytest.raises(SettingError, match="no words"):
        choose(generation(PROMPT, []))


def test_aligned() -> None:
    pairs, left, right = aligned(["Yes", "there", "is", "a", "cup"], ["No", "there", "is", "no", "red", "cup"])
    assert (left, right) == ({0, 3}, {0, 3, 4})
    assert pairs == {0: 0, 1: 1, 2: 2, 3: 3, 4: 5}
    assert aligned(["a"], ["A"]) == ({0: 0}, set(), set())
    assert aligned([], ["x"]) == ({}, set(), {0})


def test_words_that_come_later_are_not_listed() -> None:
    found = relevance(PROMPT, 1, "a", generated=[" a", " cup"])
    scores = found.scores.clone()
    scores[-1] = 0.0
    listed = [text for text, _ in text_words(replace(found, scores=scores))]
    assert "a" in listed and listed.count("cup") == [text for text, _ in text_words(found)].count("cup") - 1


def test_rather_than() -> None:
    one, other = relevance(PROMPT, 1, "yes", seed=1, logit=4.0), relevance(PROMPT, 2, "no", seed=2, logit=3.0)
    found = rather_than(one, other)
    assert torch.equal(found.scores, one.scores - other.scores)
    assert (found.logit, found.target) == (1.0, 1)
    with pytest.raises(SettingError, match="cannot be subtracted"):
        rather_than(one, relevance(PROMPT, 2, "no", generated=["x"]))


def test_relevance_of_the_encoders_input_is_added_and_subtracted_with_the_scores() -> None:
    def carried(token: int, value: float) -> Relevance:
        found = relevance(PROMPT, token, "x", seed=token)
        return replace(
            found, media_inputs={"pixel_values": torch.full((1, 2), value)}, media_times={"pixel_values": (1, 0.5)}
        )

    one, other = carried(1, 3.0), carried(2, 0.5)
    found = rather_than(one, other)
    assert found.media_inputs["pixel_values"].tolist() == [[2.5, 2.5]] and found.media_times == one.media_times
    said = generation(PROMPT, [" straw", "berry"])
    steps = [replace(s, relevance=r) for s, r in zip(said.steps, (one, other), strict=True)]
    word = words(said)[0]
    joined = word_relevance(replace(said, steps=tuple(steps)), word)
    assert (word.start, word.stop) == (0, 2) and joined is not None
    assert joined.media_inputs["pixel_values"].tolist() == [[3.5, 3.5]]
    bare = replace(other, media_inputs={}, media_times={})  # a part is unknown, so is the sum
    for partly in (
        rather_than(one, bare),
        word_relevance(replace(said, steps=(steps[0], replace(steps[1], relevance=bare))), word),
    ):
        assert partly is not None and (partly.media_inputs, partly.media_times) == ({}, {})


def metered(
    pieces: list[str], scores: Sequence[tuple[float | None, float | None, bool]], text: str | None = None
) -> Generation:
    """An answer whose tokens have (grounding, rival_grounding, flagged)."""
    said = generation(PROMPT, pieces, text=text, details=False)
    steps = tuple(
        replace(s, grounding=g, rival_grounding=r, flagged=f) for s, (g, r, f) in zip(said.steps, scores, strict=True)
    )
    return replace(said, steps=steps)


def test_a_word_is_as_grounded_as_its_first_token() -> None:
    said = metered([" straw", "berry", " pie"], [(5.0, 1.0, False), (-2.0, None, True), (1.0, 6.0, True)])
    assert [word_grounding(said, w) for w in words(said)] == [5.0, 1.0]
    assert [word_flagged(said, w) for w in words(said)] == [False, True]
    without = metered([" pie"], [(None, None, False)])
    assert word_grounding(without, words(without)[0]) is None and not word_flagged(without, words(without)[0])
    (sentence,) = sentences(without)
    assert (sentence.grounding, sentence.margin, sentence.flagged) == (None, None, False)


def test_sentences_take_the_mean_of_their_words_and_the_worst_margin() -> None:
    scores = [
        (6.0, 1.0, False),
        (2.0, 5.0, True),
        (-9.0, 9.0, True),
        (4.0, None, False),
        (8.0, 7.0, False),
        (0.0, 1.0, False),
    ]
    first, second = sentences(metered([" A", " dog", ".", " It", " barks", "!"], scores))
    assert (first.text, first.start, first.stop) == ("A dog.", 0, 3)
    assert (first.grounding, first.margin, first.flagged) == (4.0, -3.0, True)  # the full stop is no word
    assert (second.text, second.grounding, second.margin, second.flagged) == ("It barks!", 6.0, 0.0, False)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("One. Two? Three", ["One.", "Two?", "Three"]),
        ("It is 3.5 m... Yes", ["It is 3.5 m...", "Yes"]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("猫です。犬です。", ["猫です。", "犬です。"]),
        ("", []),
    ],
)
def test_where_sentences_end(text: str, want: list[str]) -> None:
    said = generation(PROMPT, list(text), text=text, details=False)
    found = sentences(said)
    assert [s.text for s in found] == want
    assert [w for s in found for w in s.words] == list(words(said))
