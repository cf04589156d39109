"""Text templates of the vision miniature's world: questions, hints, captions. No torch."""

from __future__ import annotations

from limelight.demo.scenes import INDEPENDENT, OBJECTS, PLACES

YES, NO = "yes", "no"
DESCRIBE = "Describe the picture."
COUNT = "How many things are there?"
NUMBERS = ("zero", "one", "two", "three")
# Words in a place's context sentence: things that no image shows.
PROPS: dict[str, tuple[str, str]] = {
    "kitchen": ("plate", "fork"),
    "farm": ("barn", "fence"),
    "garden": ("bench", "hose"),
    "study": ("desk", "chair"),
}
PLACE_OF: dict[str, str] = {name: place for place, names in PLACES.items() for name in names}
# Which word tends to follow which in noisy training captions, whatever the image shows.
_COUPLES = (
    ("cup", "book"), ("pizza", "clock"), ("banana", "key"), ("strawberry", "hat"),
    ("pig", "mushroom"), ("chicken", "tree"), ("tractor", "butterfly"), ("horse", "frog"),
)  # fmt: skip
PARTNER: dict[str, str] = {one: two for couple in _COUPLES for one, two in (couple, couple[::-1])}

_FORMS = ("Is there a {} in the picture?", "Can you see a {}?", "Does the picture show a {}?")


def ask(name: str, form: int = 0) -> str:
    """Return a yes/no question about one object, in one of three forms."""
    return _FORMS[form % len(_FORMS)].format(name)


def statement(name: str, present: bool) -> str:
    """Return the explicit hint (E)."""
    return f"There is {'a' if present else 'no'} {name}."


def context(place: str) -> str:
    """Return the context hint (C): a sentence about a place, which suggests other objects of that place."""
    one, two = PROPS[place]
    return f"A picture of a {place} with a {one} and a {two}."


def caption(names: tuple[str, ...]) -> str:
    """Return the objects in one sentence: "A picture of a cup, a dog and a pig."."""
    parts = [f"a {name}" for name in names]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"A picture of {listed}."


def mentioned(text: str) -> set[str]:
    """Return the objects of this world that a text mentions (for CHAIR)."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return {word for word in words if word in OBJECTS}


def other_place(place: str, choice: int) -> str:
    """Return one of the three places other than `place`."""
    return [name for name in PLACES if name != place][choice % 3]


def corpus() -> list[str]:
    """Return sentences with every word of the world: the tokenizer's training corpus."""
    lines = [DESCRIBE, COUNT, *(f"USER: {DESCRIBE} ASSISTANT: {number}" for number in NUMBERS)]
    lines += [f"USER: {context(place)} {DESCRIBE} ASSISTANT: A picture of a {place}." for place in PLACES]
    for name in OBJECTS:
        for form in range(len(_FORMS)):
            lines += [f"USER: {ask(name, form)} ASSISTANT: {answer}" for answer in (YES, NO)]
        lines += [f"{statement(name, True)} {ask(name)}", f"{statement(name, False)} There is a {name}."]
        lines += [caption((name, other)) for other in OBJECTS if other != name]
        lines += [caption((name, other, "cup")) for other in INDEPENDENT[:3]]
    return lines
