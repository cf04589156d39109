"""Text templates of the audio miniature's world: questions, hints, captions, transcription. No torch."""

from __future__ import annotations

from limelight.demo.language import NO, YES, statement
from limelight.demo.sounds import EVENTS, PLACES, USUAL, WORDS

DESCRIBE = "Describe the sounds in order."
TRANSCRIBE = "Write down the spoken words."
NOTHING, VOICE = "Nothing.", "A voice."  # captions of noise or silence, and of speech
# Words in a place's context sentence: things that have no sound in this world.
PROPS: dict[str, tuple[str, str]] = {
    "street": ("lamp", "sign"),
    "farm": ("barn", "fence"),
    "forest": ("tent", "path"),
    "home": ("sofa", "desk"),
}
PLACE_OF: dict[str, str] = {name: place for place, names in PLACES.items() for name in names}
# Which sound tends to follow which in noisy training captions, whatever the recording contains.
_COUPLES = (
    ("siren", "frog"), ("horn", "clock"), ("bell", "cow"), ("motor", "phone"),
    ("dog", "cricket"), ("duck", "drum"), ("hammer", "wolf"), ("bird", "shower"),
)  # fmt: skip
PARTNER: dict[str, str] = {one: two for couple in _COUPLES for one, two in (couple, couple[::-1])}

_FORMS = ("Is there a sound of a {} in the audio?", "Can you hear a {}?", "Does the audio contain a {}?")


def ask(name: str, form: int = 0) -> str:
    """Return a yes/no question about one sound, in one of three forms."""
    return _FORMS[form % len(_FORMS)].format(name)


def context(place: str) -> str:
    """Return the context hint (C): a sentence about a place, which suggests other sounds of that place."""
    one, two = PROPS[place]
    return f"A recording from a {place} with a {one} and a {two}."


def caption(names: tuple[str, ...]) -> str:
    """Return a caption of the sounds in order of onset: "A bell, then a dog, then a drum."."""
    return f"A {', then a '.join(names)}." if names else NOTHING


def transcript(words: tuple[str, ...]) -> str:
    """Return the spoken words; empty without speech."""
    return " ".join(words)


def mentioned(text: str) -> list[str]:
    """Return the sounds of this world that a text mentions, in order."""
    words = "".join(c if c.isalpha() else " " for c in text.lower()).split()
    return [word for word in words if word in EVENTS]


def other_place(place: str, choice: int) -> str:
    """Return one of the three places other than `place`."""
    return [name for name in PLACES if name != place][choice % 3]


def corpus() -> list[str]:
    """Return sentences with every word of the world: the tokenizer's training corpus."""
    lines = [f"USER: {DESCRIBE} ASSISTANT: {text}" for text in (NOTHING, VOICE)]
    lines += [f"USER: {TRANSCRIBE} ASSISTANT: {word} {other}" for word in WORDS for other in (*WORDS, *USUAL)]
    lines += [f"USER: {context(place)} {DESCRIBE} ASSISTANT: A recording from a {place}." for place in PLACES]
    for name in EVENTS:
        for form in range(len(_FORMS)):
            lines += [f"USER: {ask(name, form)} ASSISTANT: {answer}" for answer in (YES, NO)]
        lines += [f"{statement(name, True)} {ask(name)}", f"{statement(name, False)} There is a {name}."]
        lines += [caption((name, other, "bell")) for other in EVENTS if other != name]
    return lines
