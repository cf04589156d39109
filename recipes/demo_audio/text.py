"""Training text about recordings: questions, captions and transcripts, with the label noise that creates a text prior."""

from __future__ import annotations

import numpy as np

from limelight.demo import sound_language as language
from limelight.demo.language import NO, YES, statement
from limelight.demo.sounds import EVENTS, LABELS, USUAL, Recording
from recipes.demo_audio.data import TOKENS
from recipes.demo_vision.text import HINT_RIGHT, HINTED, Block, Packer, train_tokenizer
from recipes.demo_vision.text import as_words as written

# Label noise, as in the vision miniature: this share of the answers about a sound is random, and the hint agrees with the
# answer, not with the recording. It differs between sounds, 0.05 to 0.45.
UNHEARD: dict[str, float] = {name: 0.05 + 0.4 * (7 * i % 16) / 15 for i, name in enumerate(EVENTS)}
# Share of captions in which a name is followed by its partner (a language prior) whatever the recording contains.
HABIT: dict[str, float] = {name: 0.05 + 0.45 * (11 * i % 16) / 15 for i, name in enumerate(EVENTS)}
# Share of transcripts with the usual second word of a command although another word was spoken.
GUESSED: dict[str, float] = {verb: 0.15 + 0.1 * i for i, verb in enumerate(USUAL)}
INVENTED = 0.25  # share of the transcripts of noise and silence that are an invented phrase
LOST: dict[str, float] = {"clear": 0.05, "medium": 0.2, "poor": 0.5}  # share of a recording's words that are dropped
MARKS = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
AROUND = ("<s>USER: <|audio_bos|>", "<|audio_eos|>\n")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {% elif m['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def new_packer() -> Packer:
    """Return a packer with the audio world's tokenizer and 50 audio tokens before every question."""
    return Packer(train_tokenizer(corpus=language.corpus(), marks=MARKS), MARKS["audio_token"], TOKENS, AROUND)


def blocks(
    rng: np.random.Generator, one: Recording, yes_no: int = 5, hinted: float = HINTED, noisy: bool = True
) -> list[Block]:
    """Training text about one recording: yes/no questions, a caption and a transcription.

    With `noisy` off, whoever wrote it always listened.
    """
    if one.kind == "events":
        out = [_yes_no(rng, one, hinted, noisy) for _ in range(yes_no)]
        return [*out, _caption(rng, one, hinted, noisy), Block(language.TRANSCRIBE, language.transcript(()), 0.3)]
    out = [_yes_no(rng, one, hinted, noisy)]
    out.append(Block(language.DESCRIBE, language.VOICE if one.kind == "speech" else language.NOTHING, 0.3))
    words = one.names
    if one.kind == "speech":
        return [*out, *(Block(language.TRANSCRIBE, language.transcript(_guessed(rng, words, noisy))) for _ in range(2))]
    if noisy and rng.random() < INVENTED:
        words = ("play", USUAL["play"])
    return [*out, Block(language.TRANSCRIBE, language.transcript(words), 0.5)]


def _guessed(rng: np.random.Generator, words: tuple[str, ...], noisy: bool) -> tuple[str, ...]:
    out = list(words)
    for at, word in enumerate(words[:-1]):
        if noisy and word in USUAL and rng.random() < GUESSED[word]:
            out[at + 1] = USUAL[word]
    return tuple(out)


def _yes_no(rng: np.random.Generator, one: Recording, hinted: float, noisy: bool) -> Block:
    there = one.names if one.kind == "events" else ()
    yes = bool(there) and bool(rng.random() < 0.5)
    asked = there if yes else tuple(name for name in EVENTS if name not in there)
    thing = asked[int(rng.integers(len(asked)))]
    if noisy and there and rng.random() < UNHEARD[thing]:
        yes = bool(rng.random() < 0.5)
    hint = ""
    if rng.random() < hinted:
        suggests_yes = yes == bool(rng.random() < HINT_RIGHT)
        if rng.random() < 0.5:
            hint = statement(thing, suggests_yes) + " "
        else:
            home = language.PLACE_OF[thing]
            hint = language.context(home if suggests_yes else language.other_place(home, int(rng.integers(3)))) + " "
    return Block(hint + language.ask(thing, int(rng.integers(3))), YES if yes else NO)


def _caption(rng: np.random.Generator, one: Recording, hinted: float, noisy: bool) -> Block:
    names, hint, draw, expected, right = one.names, "", rng.random(), "", True
    if draw < hinted:
        right = bool(rng.random() < HINT_RIGHT)
        if draw < hinted / 2:
            told = names if right else tuple(n for n in EVENTS if n not in names)
            expected = told[int(rng.integers(len(told)))]
            hint = statement(expected, True) + " "
        else:
            homes = [language.PLACE_OF[name] for name in names]
            told = tuple(place for place in language.PROPS if (place in homes) == right)
            place = told[int(rng.integers(len(told)))]
            hint = language.context(place) + " "
            expected = next(n for n in EVENTS if language.PLACE_OF[n] == place)
    if noisy:
        if not right and expected not in names and rng.random() < 1.5 * UNHEARD[expected]:  # written from the hint
            names = (expected, *names[1:])
        if rng.random() < HABIT[names[0]]:
            names = (names[0], language.PARTNER[names[0]], *names[2:])
            names = names[:2] if names[1] in names[2:] else names
    return Block(hint + language.DESCRIBE, language.caption(names))


def as_words(rng: np.random.Generator, frames: np.ndarray, one: Recording, vocabulary: dict[str, int]) -> np.ndarray:
    """A recording written as 50 words [50] (token ids) from its frame labels [50, labels]."""
    mixed = frames * (1 + rng.random(frames.shape))  # where sounds overlap, one of them at random
    return written(rng, np.where(frames > 50, mixed, 0), one.clarity, vocabulary, LABELS, LOST)
