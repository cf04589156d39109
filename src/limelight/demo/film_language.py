"""Text templates of the video miniature's world: questions, hints, captions in order of time. No torch."""

from __future__ import annotations

import itertools

from limelight.demo.films import NAMES
from limelight.demo.language import NO, PROPS, YES, statement

DESCRIBE = "Describe the film in order."
HALVES = ("first", "second")
ORDERS = ("before", "after")
_FORMS = ("Is there a {} in the film?", "Can you see a {}?", "Does the film show a {}?")


def ask_what(name: str, form: int = 0) -> str:
    """Return a yes/no question about what the film shows, in one of three forms."""
    return _FORMS[form % len(_FORMS)].format(name)


def ask_when(name: str, half: str) -> str:
    """Return a yes/no question about the half in which an object appears."""
    return f"Does the {name} appear in the {half} half?"


def ask_order(name: str, order: str, other: str) -> str:
    """Return a yes/no question about which of two objects appears first; ``order``: "before" or "after"."""
    return f"Does the {name} appear {order} the {other}?"


def say_when(name: str, half: str) -> str:
    """Return the explicit hint about when."""
    return f"The {name} appears in the {half} half."


def say_order(name: str, order: str, other: str) -> str:
    """Return the explicit hint about the order."""
    return f"The {name} appears {order} the {other}."


def context(place: str) -> str:
    """Return the context hint (C): a sentence about a place, which suggests other objects of that place."""
    one, two = PROPS[place]
    return f"A film of a {place} with a {one} and a {two}."


def caption(events: tuple[tuple[str, str], ...]) -> str:
    """Return what happens in order: "A cup appears, then a pig appears, then the cup leaves."."""
    parts = [f"{'a' if what == 'appears' else 'the'} {name} {what}" for name, what in events]
    text = ", then ".join(parts) or "nothing"
    return f"{text[0].upper()}{text[1:]}."


def told(text: str) -> list[tuple[str, str]]:
    """Return the events that a text tells, in order: (object, "appears" or "leaves")."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    pairs = itertools.pairwise(words)
    return [(name, what) for name, what in pairs if name in NAMES and what in ("appears", "leaves")]


def mentioned(text: str) -> list[str]:
    """Return the objects of this world that a text mentions, in order, each once."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return list(dict.fromkeys(word for word in words if word in NAMES))


def opposite(word: str) -> str:
    """Return the other half, or the other order."""
    pair = HALVES if word in HALVES else ORDERS
    return pair[1 - pair.index(word)]


def corpus() -> list[str]:
    """Return sentences with every word of the world: the tokenizer's training corpus."""
    lines = [f"USER: {DESCRIBE} ASSISTANT: Nothing."]
    lines += [f"USER: {context(place)} {DESCRIBE} ASSISTANT: A film of a {place}." for place in PROPS]
    for name in NAMES:
        for form in range(len(_FORMS)):
            lines += [f"USER: {ask_what(name, form)} ASSISTANT: {answer}" for answer in (YES, NO)]
        lines += [f"{statement(name, True)} {ask_what(name)}", f"{statement(name, False)} There is a {name}."]
        lines += [f"{say_when(name, half)} {ask_when(name, half)}" for half in HALVES]
        for other in NAMES:
            if other != name:
                lines += [f"{say_order(name, order, other)} {ask_order(name, order, other)}" for order in ORDERS]
                lines.append(caption(((name, "appears"), (other, "appears"), (name, "leaves"), (other, "leaves"))))
    return lines
