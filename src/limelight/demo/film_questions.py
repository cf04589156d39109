"""Evaluation sets for the video miniature: yes/no questions about what, when and in which order, and captions. No torch.

A cell is "<topic>-<set>/<visibility>": topics what, when (which half an object appears in) and order (which of two
appears first); sets none, E-right and E-wrong (an explicit statement), and for what C-right and C-wrong (a context). With
the same split, visibility and seed, the sets of a topic have the same films, objects and labels, so that they can be
compared in pairs; yes and no alternate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from limelight.demo import film_language as language
from limelight.demo.films import NAMES, Film, film
from limelight.demo.language import NO, PLACE_OF, PROPS, YES, other_place, statement
from limelight.demo.questions import HintKind, _hint_kind
from limelight.demo.scenes import VISIBILITIES, Split, Visibility

Topic = Literal["what", "when", "order"]
TOPICS: tuple[Topic, ...] = ("what", "when", "order")
SETS = ("none", "E-right", "E-wrong", "C-right", "C-wrong")
_SETS_OF: dict[Topic, tuple[str, ...]] = {"what": SETS, "when": SETS[:3], "order": SETS[:3]}
CELLS = tuple(f"{t}-{name}/{v}" for t in TOPICS for name in _SETS_OF[t] for v in VISIBILITIES)


@dataclass(frozen=True)
class FilmRequest:
    """One request about one film; ``text`` is the whole user turn, ``truth`` "yes" or "no", or the events of a caption.

    ``frames``: the frames that hold the evidence for a question whose objects are there, else empty: what, those in which
    the object is visible; when, its first frame and the one before it; order, the same of both objects.
    """

    id: str
    film: Film
    text: str
    truth: Any
    cell: str
    bare: str
    hint_kind: HintKind = "none"
    hint_right: bool | None = None
    objects: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()

    @property
    def topic(self) -> str:
        """What it asks: "what", "when", "order" or "caption"."""
        return self.cell.partition("-")[0]

    @property
    def question(self) -> str:
        """The request without its hint."""
        return self.bare

    @property
    def hint(self) -> str:
        """The hint alone, or ""."""
        return self.text.removesuffix(self.bare).strip()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn in the messages format, with its film as a clip."""
        shown = {"type": "video", "video": self.film.clip()}
        return [{"role": "user", "content": [shown, {"type": "text", "text": self.text}]}]


def questions(split: Split, cell: str, n: int = 1000, seed: int = 0) -> list[FilmRequest]:
    """Return the first n questions of a cell; half of the answers are yes. Different seeds draw different films.

    Raises ValueError for a cell that is not in `CELLS`, or a seed below 0.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}; got {cell!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    head, _, seen = cell.partition("/")
    topic, _, name = head.partition("-")
    return [_question(split, _topic(topic), name, _visibility(seen), seed, number) for number in range(n)]


def captions(
    split: Split, hint: str = "none", n: int = 200, seed: int = 0, visibility: Visibility = "clear"
) -> list[FilmRequest]:
    """Return the first n caption requests; hint is one of `SETS` (wrong: an absent object, or another place)."""
    if hint not in SETS:
        raise ValueError(f"hint must be one of {', '.join(SETS)}; got {hint!r}")
    return [_caption(split, hint, visibility, seed, number) for number in range(n)]


def wording(
    topic: Topic, one: Film, rng: np.random.Generator, yes: bool, form: int = 0
) -> tuple[str, tuple[str, ...], str]:
    """Return a question whose true answer is ``yes``, its objects, and the word it turns on ("", a half or an order)."""
    if topic == "what":
        candidates = one.names if yes else tuple(name for name in NAMES if name not in one.names)
        thing = candidates[int(rng.integers(len(candidates)))]
        return language.ask_what(thing, form), (thing,), ""
    if topic == "when":
        shown = one.appearances[int(rng.integers(len(one.appearances)))]
        half = shown.half if yes else language.opposite(shown.half)
        return language.ask_when(shown.name, half), (shown.name,), half
    pair = rng.permutation(len(one.appearances))[:2]
    early, late = (one.names[int(i)] for i in sorted(pair))
    order = language.ORDERS[int(rng.integers(2))]
    first, second = (early, late) if yes == (order == "before") else (late, early)
    return language.ask_order(first, order, second), (first, second), order


def hinted(topic: Topic, objects: tuple[str, ...], word: str, suggests_yes: bool, kind: HintKind, choice: int) -> str:
    """Return the hint, with a space after it, that suggests an answer to the question of :func:`wording`; "" for none."""
    if kind == "none":
        return ""
    if kind == "C":
        home = PLACE_OF[objects[0]]
        return language.context(home if suggests_yes else other_place(home, choice)) + " "
    if topic == "what":
        return statement(objects[0], suggests_yes) + " "
    said = word if suggests_yes else language.opposite(word)
    if topic == "when":
        return language.say_when(objects[0], said) + " "
    return language.say_order(objects[0], said, objects[1]) + " "


def evidence(topic: Topic, one: Film, objects: tuple[str, ...]) -> tuple[int, ...]:
    """Return the frames that hold the evidence of a question about objects of the film; empty if one is not there."""
    if any(name not in one.names for name in objects):
        return ()
    if topic == "what":
        return tuple(one.of(objects[0]).frames)
    starts = [one.of(name).start for name in objects]
    return tuple(sorted({t for start in starts for t in (start - 1, start) if t >= 0}))


def _question(split: Split, topic: Topic, name: str, visibility: Visibility, seed: int, number: int) -> FilmRequest:
    rng = np.random.default_rng([8, TOPICS.index(topic), seed, number])
    one = film(split, visibility, _index(seed, number))
    label = YES if number % 2 == 0 else NO
    bare, objects, word = wording(topic, one, rng, label == YES)
    kind, right = _hint_kind(name)
    hint = hinted(topic, objects, word, (label == YES) == right, kind, int(rng.integers(3)))
    cell = f"{topic}-{name}/{visibility}"
    key = f"{split}/{cell}/{seed}/{number}"
    return FilmRequest(key, one, hint + bare, label, cell, bare, kind, right, objects, evidence(topic, one, objects))


def _caption(split: Split, name: str, visibility: Visibility, seed: int, number: int) -> FilmRequest:
    rng = np.random.default_rng([9, seed, number])
    one = film(split, visibility, _index(seed, number) + 500_000)
    kind, right = _hint_kind(name)
    hint, told = "", ""
    if kind == "E":
        candidates = one.names if right else tuple(n for n in NAMES if n not in one.names)
        told = candidates[int(rng.integers(len(candidates)))]
        hint = statement(told, True) + " "
    elif kind == "C":
        homes = [PLACE_OF[item] for item in one.names]
        places = tuple(place for place in PROPS if (place in homes) == right)
        hint = language.context(places[int(rng.integers(len(places)))]) + " "
    cell = f"caption-{name}/{visibility}"
    bare = language.DESCRIBE
    return FilmRequest(
        f"{split}/{cell}/{seed}/{number}",
        one,
        hint + bare,
        one.events,
        cell,
        bare,
        kind,
        right,
        (told,) if told else (),
    )


def _topic(name: str) -> Topic:
    return next(t for t in TOPICS if t == name)


def _visibility(name: str) -> Visibility:
    return next(v for v in VISIBILITIES if v == name)


def _index(seed: int, number: int) -> int:
    return 1_000_000 * seed + number
