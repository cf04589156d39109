"""The world of the audio miniature: recordings of four seconds, made from a seed.

A recording is fixed by (split, kind, clarity, index); the splits draw from disjoint seeds, dev, test and demo also use
a background noise that no training recording has, and spoken words in voices that training does not have. Kinds:

- "events": one to three of the 16 sounds in `PLACES`, independent of one another, at known onsets and offsets;
- "speech": a phrase of two to four words: a command and what usually follows it (`USUAL`), or digits;
- "noise" and "silence": nobody speaks and nothing happens.

Events need numpy only; words are read from the shipped voices (soundfile, the extra ``audio``).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from limelight.demo.synthesis import RATE, Floats, background, level, make
from limelight.errors import DataError, MissingExtraError

Split = Literal["train", "dev", "test", "demo"]
Kind = Literal["events", "speech", "noise", "silence"]
Clarity = Literal["clear", "medium", "poor"]
Phrase = Literal["usual", "broken", "digits"]
Bank = Mapping[str, Sequence[Floats]]  # word -> its spoken versions, RMS 1, 16 kHz

SECONDS = 4
SAMPLES = SECONDS * RATE
PLACES: dict[str, tuple[str, ...]] = {
    "street": ("siren", "horn", "bell", "motor"),
    "farm": ("dog", "cow", "duck", "hammer"),
    "forest": ("bird", "frog", "cricket", "wolf"),
    "home": ("phone", "clock", "shower", "drum"),
}
EVENTS: tuple[str, ...] = tuple(name for names in PLACES.values() for name in names)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
USUAL: dict[str, str] = {  # a command and the word that follows it in nine of ten training phrases
    "open": "door", "close": "window", "turn": "left", "move": "right", "play": "music", "switch": "light",
}  # fmt: skip
OBJECTS_OF_COMMANDS: tuple[str, ...] = tuple(USUAL.values())
WORDS: tuple[str, ...] = (*DIGITS, *USUAL, *OBJECTS_OF_COMMANDS)
LABELS: tuple[str, ...] = EVENTS + WORDS
SPLITS: tuple[Split, ...] = ("train", "dev", "test", "demo")
CLARITIES: tuple[Clarity, ...] = ("clear", "medium", "poor")
VOICES = Path(__file__).parent / "audio" / "voices"

_NOISES = ("white", "pink", "brown", "hum")
_HELD_OUT: dict[str, str] = {"dev": "swell", "test": "gusts", "demo": "gusts"}
# Signal over noise in decibels (low, high), for events and for words.
_RATIO: dict[Clarity, tuple[tuple[float, float], tuple[float, float]]] = {
    "clear": ((12, 28), (16, 30)),
    "medium": ((-1, 7), (6, 12)),
    "poor": ((-13, -6), (-3, 4)),
}


@dataclass(frozen=True)
class Event:
    """One sound or word: its name, onset and offset in seconds, its loudness in decibels, its seed (word: version)."""

    name: str
    onset: float
    offset: float
    gain: float
    seed: int


@dataclass(frozen=True)
class Recording:
    """One recording's content; `samples()` makes it, always the same. Events are in order of their onsets."""

    split: Split
    kind: Kind
    clarity: Clarity
    index: int
    events: tuple[Event, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The sounds (or words), in order."""
        return tuple(e.name for e in self.events)

    @property
    def spans(self) -> dict[str, tuple[float, float]]:
        """(onset, offset) of each, in seconds."""
        return {e.name: (e.onset, e.offset) for e in self.events}

    def samples(self, bank: Bank | None = None) -> Floats:
        """The sound: float32 [64000] at 16 kHz, within -1..1."""
        return render(self, bank)


def recording(
    split: Split, kind: Kind, clarity: Clarity, index: int, *, phrase: Phrase | None = None, bank: Bank | None = None
) -> Recording:
    """The recording of that number; ``phrase`` fixes what a speech recording says.

    ``bank`` holds the spoken words of the train split (the recipe makes them); other splits read the shipped ones.
    """
    rng = _rng(split, kind, clarity, phrase or "", index)
    if kind == "events":
        events = _place(rng)
    elif kind == "speech":
        events = _say(rng, phrase_words(rng, phrase), voices(split) if bank is None else bank)
    elif kind in ("noise", "silence"):
        events = ()
    else:
        raise ValueError(f"kind must be events, speech, noise or silence, got {kind!r}")
    return Recording(split, kind, clarity, index, events)


def phrase_words(rng: np.random.Generator, phrase: Phrase | None) -> tuple[str, ...]:
    """What is said: a command with its usual follower, with another one (broken), or two to four digits.

    None mixes them as in training: half digits, and nine of ten commands usual.
    """
    if phrase is None:
        phrase = "digits" if rng.random() < 0.45 else "usual" if rng.random() < 0.8 else "broken"
    if phrase == "digits":
        return tuple(DIGITS[i] for i in rng.permutation(10)[: int(rng.integers(2, 5))])
    verb = tuple(USUAL)[int(rng.integers(len(USUAL)))]
    others = [word for word in OBJECTS_OF_COMMANDS if word != USUAL[verb]]
    follower = USUAL[verb] if phrase == "usual" else others[int(rng.integers(len(others)))]
    before = [DIGITS[i] for i in rng.permutation(10)[: int(rng.integers(0, 3))]]
    if rng.random() < 0.5:
        return (verb, follower, *before)
    return (*before, verb, follower)


def render(one: Recording, bank: Bank | None = None) -> Floats:
    """The recording's samples [64000]."""
    rng = _rng(one.split, one.kind, one.clarity, ",".join(one.names), one.index, "samples")
    loudness = 10 ** (rng.uniform(-32, -16) / 20)
    if one.kind == "silence":
        return np.zeros(SAMPLES, np.float32) + rng.standard_normal(SAMPLES, dtype=np.float32) * np.float32(1e-5)
    noises = _NOISES + ((_HELD_OUT[one.split],) if one.split in _HELD_OUT else ())
    behind = background(rng, noises[int(rng.integers(len(noises)))], SAMPLES)
    if not one.events:
        return _bounded(behind * np.float32(loudness))
    spoken = (voices(one.split) if bank is None else bank) if one.kind == "speech" else {}
    front = np.zeros(SAMPLES, np.float32)
    for event in one.events:
        start, stop = round(event.onset * RATE), round(event.offset * RATE)
        if one.kind == "speech":
            versions = spoken[event.name]
            sound = versions[event.seed % len(versions)][: stop - start]
        else:
            sound = make(event.name, np.random.default_rng([event.seed, 7]), stop - start)
        front[start : start + len(sound)] += sound * np.float32(10 ** (event.gain / 20))
    ratio = rng.uniform(*_RATIO[one.clarity][one.kind == "speech"])
    mixed = front * np.float32(10 ** (ratio / 20)) + behind
    return _bounded(level(mixed) * np.float32(loudness))


def _bounded(samples: Floats) -> Floats:
    out: Floats = np.clip(samples, -1, 1)
    return out


@cache
def voices(split: Split) -> Bank:
    """The shipped spoken words of a split (demo says them in the voices of test): word -> versions of RMS 1.

    Raises:
        DataError: the train split's words are made by the recipe. MissingExtraError: soundfile is not installed.
    """
    path = VOICES / f"{'test' if split == 'demo' else split}.flac"
    if split == "train" or not path.is_file():
        raise DataError(
            f"the spoken words of the split {split!r} are not shipped",
            hint="python -m recipes.demo_audio.train makes them (needs espeak-ng)",
        )
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtraError("soundfile", "audio") from error
    samples, _ = soundfile.read(str(path), dtype="float32")
    listing = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    bank: dict[str, list[Floats]] = {word: [] for word in WORDS}
    for row in listing["words"]:
        bank[row["word"]].append(level(samples[row["start"] : row["stop"]]))
    return bank


def _place(rng: np.random.Generator) -> tuple[Event, ...]:
    count = int(rng.integers(1, 4))
    picked = [EVENTS[i] for i in rng.permutation(len(EVENTS))[:count]]
    lengths = rng.uniform(*{1: (0.8, 2.4), 2: (0.7, 1.8), 3: (0.7, 1.3)}[count], count)
    # onsets at least half a second apart, so that there is an order; sounds may overlap
    slack = SECONDS - 0.1 - lengths[-1] - 0.5 * (count - 1)
    onsets = np.sort(rng.uniform(0.05, slack, count)) + 0.5 * np.arange(count)
    return tuple(
        Event(name, round(float(on), 3), round(float(min(SECONDS - 0.02, on + length)), 3), float(rng.uniform(-4, 4)),
              int(rng.integers(2**31)))
        for name, on, length in zip(picked, onsets, lengths, strict=True)
    )  # fmt: skip


def _say(rng: np.random.Generator, words: tuple[str, ...], bank: Bank) -> tuple[Event, ...]:
    version = int(rng.integers(2**31))  # one voice a phrase
    sizes = [len(bank[word][version % len(bank[word])]) / RATE for word in words]
    gaps = rng.uniform(0.1, 0.28, len(words) - 1)
    at = float(rng.uniform(0.1, max(0.15, SECONDS - 0.15 - sum(sizes) - float(gaps.sum()))))
    events = []
    for word, size, gap in zip(words, sizes, [*gaps, 0.0], strict=True):
        onset = round(at, 3)
        events.append(
            Event(word, onset, round(min(SECONDS - 0.01, onset + size), 3), float(rng.uniform(-1.5, 1.5)), version)
        )
        at += size + float(gap)
    return tuple(events)


def _rng(*key: str | int) -> np.random.Generator:
    return np.random.default_rng([k if isinstance(k, int) else zlib.crc32(k.encode()) for k in key])
