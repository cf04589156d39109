from __future__ import annotations

from limelight.benchmarks.scorers.words import Known, nouns, singular, tokens


def test_tokens() -> None:
    assert tokens("A dog's bowl. Two cups, e.g. red!\n\nEnd.") == (
        ["A", "dog", "'s", "bowl", ".", "Two", "cups", ",", "e.g", ".", "red", "!", "End", "."]
    )
    assert tokens("") == []


def test_singular_follows_the_rules_of_2018() -> None:
    words = {
        "dogs": "dog",
        "buses": "bus",
        "bus": "bu",
        "knives": "knife",
        "people": "person",
        "sheep": "sheep",
        "ties": "ty",
    }
    assert {w: singular(w) for w in words} == words


def test_known_words_are_found_in_the_plural_and_never_destroyed() -> None:
    known = Known.of(["bus", "tie", "knife", "cow", "person", "skis", "sheep", "glass"])
    words = {
        "bus": "bus",
        "buses": "bus",
        "ties": "tie",
        "knives": "knife",
        "cows": "cow",
        "people": "person",
        "skis": "skis",
    }
    assert {w: known.base(w) for w in words} == words
    assert known.base("glasses") == "glass"
    assert known.base("gas") == "gas"


def test_nouns() -> None:
    assert nouns("He sees a bear near the sink.") == ["bear", "sink"]
    assert "leaves" in nouns("A pile of leaves.")
    assert "leaves" not in nouns("He leaves.")
