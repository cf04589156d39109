"""Questions and captions about scenes of dev and test, whose cut-outs training has not seen.

Hints are a test condition only: no training text holds one. A hint of kind E says what is or is not in the picture; one
of kind C names a theme that the asked thing belongs to, or does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image

from recipes.real_vision.cutouts import CutOut, all_splits, home
from recipes.real_vision.data import things_of
from recipes.real_vision.nouns import NOUNS
from recipes.real_vision.scenes import LOOKS, SIDE, THEMES, Thing, choose, compose, draw
from recipes.real_vision.text import DESCRIBE, KINDS, Company, article, question

SIGHTS = ("clear", "small", "faint", "poor")  # poor: small and faint in turn
HINTS = ("none", "E-right", "E-wrong", "C-right", "C-wrong")
ABOUT = {
    "garden": "a garden", "farm": "a farm", "sky": "the sky", "street": "a street", "food": "food", "party": "a party",
    "music": "music", "desk": "a desk", "workshop": "a workshop", "churchyard": "a churchyard", "games": "games",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A scene of a split: its number, how its things look, and what they are."""

    id: str
    sight: str
    image: Image.Image
    things: tuple[Thing, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(t.noun for t in self.things)


@dataclass(frozen=True)
class Question:
    """A question with yes or no; ``hint`` is the text before it."""

    id: str
    picture: Picture
    noun: str
    present: bool
    hint: str

    @property
    def text(self) -> str:
        return f"{self.hint} {question(self.noun)}".strip()


@dataclass(frozen=True)
class Caption:
    """A request for a caption; ``hinted`` is the absent noun that the hint names, if it names one."""

    id: str
    picture: Picture
    hint: str
    hinted: str

    @property
    def text(self) -> str:
        return f"{self.hint} {DESCRIBE[0]}".strip()


@cache
def _cutouts() -> dict[str, dict[str, list[CutOut]]]:
    return all_splits()


@cache
def company() -> Company:
    """What goes with what in the scenes of training."""
    nouns = sorted(NOUNS)
    things = things_of(home() / "features", "train")
    return Company(([nouns[i] for i in row if i >= 0] for row in things), nouns)


@cache
def picture(split: str, sight: str, number: int) -> Picture:
    """Scene ``number`` of a split; dev's are others than those measured in training."""
    look = LOOKS[("small", "faint")[number % 2] if sight == "poor" else sight]
    scene = draw(_cutouts()[split], random.Random(f"asked/{split}/{sight}/{number}"), look, vary=False)
    return Picture(f"{split}-{sight}-{number:04d}", sight, scene.image, scene.things)


def statement(noun: str, present: bool) -> str:
    return f"I think there is {article(noun) if present else f'no {noun}'} in the picture."


def _context(noun: str, fits: bool, rng: random.Random) -> str:
    return f"The picture is about {ABOUT[rng.choice([t for t in sorted(ABOUT) if (noun in THEMES[t]) == fits])]}."


def questions(split: str, cell: str, n: int) -> list[Question]:
    """``n`` questions of a cell ``set/sight``, yes and no in turn; the five sets with hints ask the same.

    Sets: the hints (what is absent is drawn from all nouns), ``random``, ``popular``, ``adversarial``.
    """
    name, _, sight = cell.partition("/")
    if sight not in SIGHTS or name not in (*HINTS, *KINDS):
        raise ValueError(f"no cell {cell!r}; sets {', '.join((*HINTS, *KINDS))}; sights {', '.join(SIGHTS)}")
    out = []
    for number in range(n):
        shown = picture(split, sight, number)
        present = number % 2 == 0
        rng = random.Random(f"{split}/{name if name in KINDS else 'hint'}/{sight}/{number}")
        if present:
            noun = rng.choice(shown.nouns)
        else:
            noun = company().absent(name if name in KINDS else "random", shown.nouns, rng)
        hint = ""
        if name[0] == "E":
            hint = statement(noun, present == (name == "E-right"))
        elif name[0] == "C":
            hint = _context(noun, present == (name == "C-right"), random.Random(f"{name}/{number}"))
        out.append(Question(f"{shown.id}/{name}", shown, noun, present, hint))
    return out


def captions(split: str, hints: str, n: int, sight: str = "clear") -> list[Caption]:
    """``n`` caption requests; with ``E-wrong`` each names something that is not there, likely beside what is."""
    out = []
    for number in range(n):
        shown = picture(split, sight, number)
        rng = random.Random(f"{split}/caption/{sight}/{number}")
        noun = company().absent("adversarial", shown.nouns, rng) if hints == "E-wrong" else ""
        out.append(Caption(f"{shown.id}/caption-{hints}", shown, statement(noun, True) if noun else "", noun))
    return out


def large_questions(split: str, factor: int, n: int) -> list[Question]:
    """``n`` questions on scenes of ``factor`` times the usual side, whose two to four things have their usual sizes: scaled
    down to what the encoder sees they are small."""
    cutouts = _cutouts()[split]
    out = []
    for number in range(n):
        rng = random.Random(f"large/{split}/{factor}/{number}")
        nouns = choose(sorted(cutouts), rng.choice((2, 3, 4)), rng)
        scene = compose([rng.choice(cutouts[noun]) for noun in nouns], rng, vary=False, side=factor * SIDE)
        shown = Picture(f"{split}-large{factor}-{number:04d}", "clear", scene.image, scene.things)
        present = number % 2 == 0
        noun = rng.choice(shown.nouns) if present else company().absent("random", shown.nouns, rng)
        out.append(Question(f"{shown.id}/large", shown, noun, present, ""))
    return out
