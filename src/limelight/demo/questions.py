"""Evaluation sets for the vision miniature: yes/no questions in cells, and captions. No torch.

A cell is "<set>/<visibility>". Sets with a text-borne prior: none, E-right, E-wrong, C-right, C-wrong (a hint before the
question; E is an explicit statement, C a context sentence). With the same split, visibility and seed they have the same
scenes, objects and labels, so that they can be compared in pairs. Sets with an image-borne prior: random, popular,
adversarial ask about images of a trio whose third object is missing (only the negatives differ); intact asks about
complete trios. Yes and no alternate in every cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from limelight.demo import language
from limelight.demo.scenes import INDEPENDENT, SOCIAL, TRIOS, VISIBILITIES, Scene, Split, Visibility, scene

HintKind = Literal["none", "E", "C"]
Negative = Literal["random", "popular", "adversarial"]
TEXT_SETS = ("none", "E-right", "E-wrong", "C-right", "C-wrong")
IMAGE_SETS = ("intact", "random", "popular", "adversarial")
CELLS = tuple(f"{name}/{visibility}" for name in TEXT_SETS + IMAGE_SETS for visibility in VISIBILITIES)


@dataclass(frozen=True)
class Question:
    """One yes/no question; `text` is the whole user turn (hint and question), `question` the question alone."""

    id: str
    scene: Scene
    text: str
    label: str
    cell: str
    visibility: Visibility
    hint_kind: HintKind
    hint_right: bool | None
    negative: Negative
    object: str

    @property
    def question(self) -> str:
        """The question without its hint."""
        return language.ask(self.object)

    @property
    def hint(self) -> str:
        """The hint alone, or ""."""
        return self.text.removesuffix(self.question).strip()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn in the messages format, with its PIL image."""
        return messages(self.scene, self.text)


@dataclass(frozen=True)
class Caption:
    """One request for a caption; `objects` are those in the image."""

    id: str
    scene: Scene
    text: str
    objects: frozenset[str]
    visibility: Visibility
    hint_kind: HintKind
    hint_right: bool | None
    hint_object: str | None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn in the messages format, with its PIL image."""
        return messages(self.scene, self.text)


def messages(picture: Scene, text: str) -> list[dict[str, Any]]:
    """Build one user turn: the image, then the text."""
    return [{"role": "user", "content": [{"type": "image", "image": picture.image()}, {"type": "text", "text": text}]}]


def questions(split: Split, cell: str, n: int = 1000, seed: int = 0) -> list[Question]:
    """Return the first n questions of a cell; half of the answers are yes. Different seeds draw different scenes.

    Raises ValueError for a cell that is not in `CELLS`, or a seed below 0.
    """
    check_cell(cell, CELLS, seed)
    name, _, chosen = cell.partition("/")
    visibility: Visibility = next(v for v in VISIBILITIES if v == chosen)
    make = _text_question if name in TEXT_SETS else _image_question
    return [make(split, name, visibility, seed, number) for number in range(n)]


def captions(
    split: Split, hint: str = "none", n: int = 200, seed: int = 0, visibility: Visibility = "clear"
) -> list[Caption]:
    """Return the first n caption requests; hint is one of `TEXT_SETS` (wrong: an absent object, or another place)."""
    if hint not in TEXT_SETS:
        raise ValueError(f"hint must be one of {', '.join(TEXT_SETS)}; got {hint!r}")
    return [_caption(split, hint, visibility, seed, number) for number in range(n)]


def _text_question(split: Split, name: str, visibility: Visibility, seed: int, number: int) -> Question:
    rng = np.random.default_rng([3, seed, number])
    picture = scene(split, "independent", visibility, _index(seed, number))
    label = language.YES if number % 2 == 0 else language.NO
    candidates = picture.names if label == language.YES else _absent(INDEPENDENT, picture)
    thing = candidates[int(rng.integers(len(candidates)))]
    kind, right = _hint_kind(name)
    hint = question_hint(language, kind, thing, (label == language.YES) == right, rng)
    text, cell = hint + language.ask(thing), f"{name}/{visibility}"
    key = f"{split}/{cell}/{seed}/{number}"
    return Question(key, picture, text, label, cell, visibility, kind, right, "random", thing)


def _image_question(split: Split, name: str, visibility: Visibility, seed: int, number: int) -> Question:
    rng = np.random.default_rng([4, seed, number])
    picture = scene(split, "trio" if name == "intact" else "broken", visibility, _index(seed, number))
    label = language.YES if number % 2 == 0 else language.NO
    absent = _absent(INDEPENDENT, picture)
    other_trio = next(trio for trio in TRIOS if not set(trio) & set(picture.names))
    negative: Negative = (
        "random" if name == "intact" else next(n for n in ("random", "popular", "adversarial") if n == name)
    )
    if label == language.YES:
        candidates = picture.names
    elif negative == "popular":  # the most frequent objects of the training images except this trio
        candidates = other_trio
    elif negative == "adversarial" and picture.missing is not None:
        candidates = (picture.missing,)
    else:
        candidates = absent + other_trio
    thing = candidates[int(rng.integers(len(candidates)))]
    cell = f"{name}/{visibility}"
    key = f"{split}/{cell}/{seed}/{number}"
    return Question(key, picture, language.ask(thing), label, cell, visibility, "none", None, negative, thing)


def _caption(split: Split, name: str, visibility: Visibility, seed: int, number: int) -> Caption:
    rng = np.random.default_rng([5, seed, number])
    picture = scene(split, "independent", visibility, _index(seed, number) + 500_000)
    kind, right = _hint_kind(name)
    hint, thing = caption_hint(language, kind, right, picture.names, _absent(INDEPENDENT, picture), rng)
    key = f"{split}/caption-{name}/{visibility}/{seed}/{number}"
    text = hint + language.DESCRIBE
    return Caption(key, picture, text, frozenset(picture.names), visibility, kind, right, thing)


def check_cell(cell: str, cells: Sequence[str], seed: int) -> None:
    """Raise ValueError for an unknown cell, or a seed below 0."""
    if cell not in cells:
        raise ValueError(f"cell must be one of {', '.join(cells)}; got {cell!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")


def question_hint(world: Any, kind: HintKind, thing: str, suggests_yes: bool, rng: np.random.Generator) -> str:
    """Return the hint before a question about ``thing``; ``world``: the templates, such as :mod:`limelight.demo.language`."""
    if kind == "none":
        return ""
    if kind == "E":
        return f"{language.statement(thing, suggests_yes)} "
    home = world.PLACE_OF[thing]
    return f"{world.context(home if suggests_yes else world.other_place(home, int(rng.integers(3))))} "


def caption_hint(
    world: Any,
    kind: HintKind,
    right: bool | None,
    present: Sequence[str],
    absent: Sequence[str],
    rng: np.random.Generator,
) -> tuple[str, str | None]:
    """Return the hint before a request for a caption, and the thing that an explicit one names."""
    if kind == "none":
        return "", None
    if kind == "E":
        candidates = present if right else absent
        thing = candidates[int(rng.integers(len(candidates)))]
        return f"{language.statement(thing, True)} ", thing
    homes = [world.PLACE_OF[item] for item in present]
    places = [place for place in world.PROPS if (place in homes) == right]
    return f"{world.context(places[int(rng.integers(len(places)))])} ", None


def _hint_kind(name: str) -> tuple[HintKind, bool | None]:
    if name == "none":
        return "none", None
    return ("E" if name.startswith("E") else "C"), name.endswith("right")


def _absent(names: tuple[str, ...], picture: Scene) -> tuple[str, ...]:
    return tuple(name for name in names if name not in picture.names)


def _index(seed: int, number: int) -> int:
    return 1_000_000 * seed + number


def every_cell(split: Split, n: int = 1000, seed: int = 0) -> Iterator[tuple[str, list[Question]]]:
    """All cells with their questions."""
    for cell in CELLS:
        yield cell, questions(split, cell, n, seed)


__all__ = [
    "CELLS", "IMAGE_SETS", "SOCIAL", "TEXT_SETS", "Caption", "Question", "captions", "every_cell", "messages", "questions",
]  # fmt: skip
