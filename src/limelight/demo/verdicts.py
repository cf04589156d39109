"""One sentence or two on what happened to a question or a caption of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from limelight.demo.language import NO
from limelight.report.words import word_flagged, words
from limelight.types import Generation

if TYPE_CHECKING:
    from limelight.demo.outcome import Caption, Example, Outcome

NAMES = {"lime": "LIME", "lime-cached": "cached LIME", "vcd": "VCD", "pai": "PAI", "avisc": "AvisC", "m3id": "M3ID"}


def question_verdict(example: Example, outcomes: Sequence[Outcome]) -> str:
    """Return what misled greedy decoding, and who looked: "The prompt said there is no hat. Greedy believed it: no. ..."."""
    greedy, others = outcomes[0], outcomes[1:]
    parts = [_cause(example)]
    if greedy.right:
        parts.append(f"Greedy answered correctly: {greedy.generation.text}.")
    else:
        parts.append(f"Greedy believed it: {greedy.generation.text}.")
    looked = [o for o in others if o.right]
    rest = [o for o in others if not o.right]
    if looked:
        did = "looked" if example.hint else "answered correctly"
        parts.append(f"{_capital(listed([_name(o.generation) for o in looked]))} {did}: {example.label}.")
    if rest:
        told = listed([_name(o.generation) for o in rest])
        parts.append(f"{_capital(told)} did not." if looked or greedy.right else f"So did {told}.")
    return " ".join(parts)


def caption_verdict(caption: Caption, answers: Mapping[str, Generation], vocabulary: frozenset[str]) -> str:
    """Return which words each answer invents, and whether the meter flags them."""
    parts = []
    for i, (name, answer) in enumerate(answers.items()):
        invented = invented_words(caption, answer, vocabulary)
        missed = [o for o in caption.objects if o not in {w.text for w in words(answer)}]
        who = "Greedy" if i == 0 else _capital(NAMES.get(name, name))
        if i == len(answers) - 1 and i > 0:
            who = f"A second look ({NAMES.get(name, name)})"
        if not invented:
            told = f"invents nothing{f', but misses the {listed(missed)}' if missed else ''}"
        else:
            flagged = {w.text for w in words(answer) if word_flagged(answer, w)}
            marked = [w for w in invented if w in flagged]
            told = f"invents {listed([_article(w) for w in invented])}"
            if i == 0:
                told += ", and the meter flags it (⚑)" if marked == invented else ", which the meter does not flag"
        parts.append(f"{who} {told}: “{answer.text}”")
    return " ".join(parts)


def invented_words(caption: Caption, answer: Generation, vocabulary: frozenset[str]) -> list[str]:
    """Return the objects (sounds) that an answer mentions and that are absent, in order."""
    found = [w.text for w in words(answer) if w.text in vocabulary and w.text not in caption.objects]
    return list(dict.fromkeys(found))


def _cause(example: Example) -> str:
    hint = example.hint.rstrip(".")
    if not hint:
        others = listed([f"the {name}" for name in example.objects])
        return f"The {example.noun} itself misleads: {others} suggest a {example.object}."
    start = next((s for s in ("A picture of ", "A recording from ", "A film of ") if hint.startswith(s)), "")
    if not start:
        return f"The prompt said {hint[0].lower()}{hint[1:]}."
    wrong = "none" if example.label != NO else "one"
    return f"The prompt spoke of {hint.removeprefix(start)}, which suggests that there is {wrong}."


def _name(generation: Generation) -> str:
    return NAMES.get(generation.strategy, generation.strategy)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _article(word: str) -> str:
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}"


def listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
