"""The audio questions: balanced, true, paired across hints, different for every seed and split."""

from __future__ import annotations

import pytest

from limelight.demo import sound_language as language
from limelight.demo.language import statement
from limelight.demo.sound_questions import CELLS, SETS, SPEECH_SETS, captions, questions, transcriptions
from limelight.demo.sounds import PLACES, USUAL


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_balanced_and_true(cell: str) -> None:
    items = questions("dev", cell, 20)
    assert sum(q.truth == "yes" for q in items) == 10
    for q in items:
        assert (q.object in q.recording.names) == (q.truth == "yes")
        assert q.recording.clarity == cell.split("/")[1]
        assert q.text == f"{q.hint} {q.question}".strip()


def test_sets_are_pairs_of_the_same_questions() -> None:
    sets = [questions("test", f"{name}/poor", 30, seed=2) for name in SETS]
    for row in zip(*sets, strict=True):
        assert len({(q.recording, q.object, q.truth) for q in row}) == 1
        assert len({q.id for q in row}) == len(row)


def test_hints_match_their_cell() -> None:
    for right in (True, False):
        word = "right" if right else "wrong"
        for q in questions("dev", f"E-{word}/clear", 20):
            assert q.hint == statement(q.object, (q.truth == "yes") == right)
        for q in questions("dev", f"C-{word}/clear", 20):
            place = next(p for p in PLACES if f"from a {p} " in q.hint)
            assert (q.object in PLACES[place]) == ((q.truth == "yes") == right)
            assert not language.mentioned(q.hint)
    assert all(q.hint == "" and q.hint_right is None for q in questions("dev", "none/poor", 10))


def test_seeds_and_splits_differ() -> None:
    def keys(split: str, seed: int) -> set[object]:
        return {q.recording.events for q in questions(split, "none/clear", 30, seed)}  # type: ignore[arg-type]

    assert not keys("dev", 0) & keys("dev", 1)
    assert not keys("dev", 0) & keys("test", 0)
    assert questions("dev", "none/clear", 5) == questions("dev", "none/clear", 9)[:5]


def test_captions_and_their_words() -> None:
    for hint in SETS:
        for c in captions("dev", hint, 10, clarity="medium"):
            assert c.truth == c.recording.names
            assert c.text.endswith(language.DESCRIBE)
            if c.object:
                assert (c.object in c.truth) == c.hint_right
    assert language.caption(("bell", "dog", "drum")) == "A bell, then a dog, then a drum."
    assert language.caption(()) == "Nothing."
    assert language.mentioned("A dog, then two BELLs and a bell.") == ["dog", "bell"]


def test_transcriptions() -> None:
    for name in SPEECH_SETS:
        for a in transcriptions("test", name, 4):
            assert a.text == language.TRANSCRIBE
            assert a.truth == (" ".join(a.recording.names) if "/" in name else "")
            assert (a.recording.kind == "speech") == ("/" in name)
    usual = transcriptions("dev", "usual/clear", 5)
    assert all(any(f"{verb} {noun}" in a.truth for verb, noun in USUAL.items()) for a in usual)


def test_messages_hold_the_sound() -> None:
    content = questions("dev", "none/clear", 1)[0].messages[0]["content"]
    samples, rate = content[0]["audio"]
    assert samples.shape == (64_000,)
    assert rate == 16_000
    assert content[1]["text"].startswith("Is there a sound of a ")


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="cell must be one of"):
        questions("dev", "none/foggy")
    with pytest.raises(ValueError, match="hint must be one of"):
        captions("dev", "X")
    with pytest.raises(ValueError, match="set must be one of"):
        transcriptions("dev", "songs")
    with pytest.raises(ValueError, match="seed must be"):
        questions("dev", "none/clear", seed=-1)
