"""The questions about films: balanced, true, paired across hints, different for every seed and split."""

from __future__ import annotations

import pytest

from limelight.demo import film_language as language
from limelight.demo.film_questions import CELLS, SETS, captions, questions
from limelight.demo.films import HALF
from limelight.demo.language import PLACE_OF, PROPS


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_balanced_and_true(cell: str) -> None:
    items = questions("dev", cell, 20)
    assert sum(q.truth == "yes" for q in items) == 10
    for q in items:
        assert q.film.visibility == cell.split("/")[1]
        assert q.text == f"{q.hint} {q.question}".strip()
        starts = {a.name: a.start for a in q.film.appearances}
        if q.topic == "what":
            said = q.objects[0] in starts
            assert q.frames == (tuple(q.film.of(q.objects[0]).frames) if said else ())
        elif q.topic == "when":
            said = (starts[q.objects[0]] < HALF) == ("first" in q.question)
            assert starts[q.objects[0]] in q.frames
        else:
            one, two = q.objects
            assert f"the {one} appear" in q.question
            said = (starts[one] < starts[two]) == ("before" in q.question)
            assert {starts[one], starts[two]} <= set(q.frames)
        assert said == (q.truth == "yes")


@pytest.mark.parametrize("topic", ["what", "when", "order"])
def test_hints_suggest_what_they_should_about_the_same_films(topic: str) -> None:
    bare, right, wrong = (questions("dev", f"{topic}-{s}/clear", 12) for s in ("none", "E-right", "E-wrong"))
    for a, b, c in zip(bare, right, wrong, strict=True):
        assert a.film == b.film == c.film
        assert a.question == b.question == c.question == a.text
        assert b.hint != c.hint
        assert a.hint == ""
        told = {True: b.hint, False: c.hint}[a.truth == "yes"]  # the hint that says yes
        if topic == "what":
            assert told == f"There is a {a.objects[0]}."
        else:
            assert told.removeprefix("The ").removesuffix(".").replace("appears", "appear") in a.question


def test_contexts_name_the_home_or_another_place() -> None:
    for name, right in (("C-right", True), ("C-wrong", False)):
        for q in questions("dev", f"what-{name}/clear", 12):
            home = language.context(PLACE_OF[q.objects[0]])
            assert (q.hint == home) == (right == (q.truth == "yes"))


def test_captions_tell_the_events_in_order_and_hints_name_what_they_should() -> None:
    for name in SETS:
        for c in captions("dev", name, 10):
            assert language.told(language.caption(c.truth)) == list(c.truth)
            assert language.mentioned(language.caption(c.truth)) == list(c.film.names)
            if c.objects:
                assert (c.objects[0] in c.film.names) == c.hint_right
            if name.startswith("C"):
                place = next(p for p in PROPS if c.hint == language.context(p))
                assert (place in {PLACE_OF[n] for n in c.film.names}) == c.hint_right
    assert language.caption((("cup", "appears"), ("pig", "appears"), ("cup", "leaves"))) == (
        "A cup appears, then a pig appears, then the cup leaves."
    )
    assert language.caption(()) == "Nothing."
    assert language.mentioned("A zebra, a cup and the cup.") == ["cup"]


def test_seeds_and_splits_differ() -> None:
    cells = [questions("dev", "what-none/clear", 8, seed=s) for s in (0, 1)]
    cells.append(questions("test", "what-none/clear", 8))
    assert len({tuple(q.film.appearances for q in items) for items in cells}) == 3
    assert len({q.id for items in cells for q in items}) == 24


def test_the_messages_hold_the_film() -> None:
    q = questions("dev", "when-none/clear", 1)[0]
    shown, text = q.messages[0]["content"]
    assert len(shown["video"]) == 8
    assert text["text"] == q.text


def test_wrong_requests_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="cell must be one of what-none/clear"):
        questions("dev", "none/clear")
    with pytest.raises(ValueError, match="seed must be at least 0"):
        questions("dev", "what-none/clear", seed=-1)
    with pytest.raises(ValueError, match="hint must be one of none"):
        captions("dev", "D-right")
