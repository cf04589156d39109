"""The questions: balanced, true, paired across hints, different for every seed and split."""

from __future__ import annotations

import pytest

from limelight.demo import language
from limelight.demo.questions import CELLS, IMAGE_SETS, TEXT_SETS, captions, every_cell, questions
from limelight.demo.scenes import PLACES, SOCIAL


def test_every_cell_is_balanced_and_true() -> None:
    seen = 0
    for cell, items in every_cell("dev", 20):
        seen += 1
        assert sum(q.label == "yes" for q in items) == 10
        for q in items:
            assert (q.object in q.scene.names) == (q.label == "yes")
            assert q.cell == cell
            assert q.scene.visibility == q.visibility == cell.split("/")[1]
            assert q.text.endswith(q.question)
            assert q.text == f"{q.hint} {q.question}".strip()
    assert seen == len(CELLS) == 27


@pytest.mark.parametrize("visibility", ["clear", "poor"])
def test_text_sets_are_pairs_of_the_same_questions(visibility: str) -> None:
    sets = [questions("test", f"{name}/{visibility}", 30, seed=2) for name in TEXT_SETS]
    for row in zip(*sets, strict=True):
        assert len({(q.scene, q.object, q.label) for q in row}) == 1
        assert len({q.id for q in row}) == len(row)


def test_hints_match_their_cell() -> None:
    for right in (True, False):
        word = "right" if right else "wrong"
        for q in questions("dev", f"E-{word}/clear", 30):
            assert q.hint == language.statement(q.object, (q.label == "yes") == right)
            assert q.hint_right is right
        for q in questions("dev", f"C-{word}/clear", 30):
            place = next(p for p in PLACES if p in q.hint)
            assert (q.object in PLACES[place]) == ((q.label == "yes") == right)
            assert not language.mentioned(q.hint)  # a context sentence names no object that a picture can show
    assert all(q.hint == "" and q.hint_right is None for q in questions("dev", "none/poor", 10))


def test_image_borne_negatives() -> None:
    sets = {name: questions("test", f"{name}/clear", 40) for name in IMAGE_SETS}
    for name in ("random", "popular", "adversarial"):
        assert [q.scene for q in sets[name]] == [q.scene for q in sets["random"]]
        assert all(q.scene.kind == "broken" and q.hint_kind == "none" and q.negative == name for q in sets[name])
    for q in sets["adversarial"]:
        assert q.object == q.scene.missing if q.label == "no" else q.object in q.scene.names
    assert all(q.object in SOCIAL and q.object != q.scene.missing for q in sets["popular"])
    assert all(q.scene.kind == "trio" for q in sets["intact"])


def test_seeds_and_splits_differ() -> None:
    def keys(split: str, seed: int) -> set[object]:
        return {q.scene.items for q in questions(split, "none/clear", 30, seed)}  # type: ignore[arg-type]

    assert not keys("dev", 0) & keys("dev", 1)
    assert not keys("dev", 0) & keys("test", 0)
    assert questions("dev", "none/clear", 5) == questions("dev", "none/clear", 9)[:5]


def test_captions() -> None:
    for hint in TEXT_SETS:
        for c in captions("dev", hint, 20):
            assert c.objects == frozenset(c.scene.names)
            assert c.text.endswith(language.DESCRIBE)
            if c.hint_object is not None:
                assert (c.hint_object in c.objects) == c.hint_right
    assert language.caption(("cup", "dog", "pig")) == "A picture of a cup, a dog and a pig."
    assert language.mentioned("A dog, two CUPS and a pig.") == {"dog", "pig"}


def test_messages_hold_the_picture() -> None:
    content = questions("dev", "none/clear", 1)[0].messages[0]["content"]
    assert content[0]["image"].size == (112, 112)
    assert content[1]["text"].startswith("Is there a ")


def test_unknown_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="cell must be one of"):
        questions("dev", "none/foggy")
    with pytest.raises(ValueError, match="hint must be one of"):
        captions("dev", "X")
    with pytest.raises(ValueError, match="seed must be"):
        questions("dev", "none/clear", seed=-1)
