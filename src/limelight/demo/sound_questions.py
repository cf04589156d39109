"""Evaluation sets for the audio miniature: yes/no questions in cells, captions, transcription. No torch.

A cell is "<set>/<clarity>"; the sets are those of the vision miniature's text-borne prior: none, E-right, E-wrong,
C-right, C-wrong. With the same split, clarity and seed they have the same recordings, sounds and labels, so that they can
be compared in pairs; yes and no alternate. Transcription sets: "usual", "broken" and "digits" phrases, clear, medium or
poor, and recordings without speech: "noise", "silence", "events".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from limelight.demo import sound_language as language
from limelight.demo.language import NO, YES
from limelight.demo.questions import HintKind, _hint_kind, caption_hint, check_cell, question_hint
from limelight.demo.sounds import CLARITIES, EVENTS, Clarity, Kind, Phrase, Recording, Split, recording
from limelight.demo.synthesis import RATE

SETS = ("none", "E-right", "E-wrong", "C-right", "C-wrong")
CELLS = tuple(f"{name}/{clarity}" for name in SETS for clarity in CLARITIES)
PHRASES: tuple[Phrase, ...] = ("usual", "broken", "digits")
QUIET: tuple[Kind, ...] = ("noise", "silence", "events")
SPEECH_SETS = (*(f"{phrase}/{clarity}" for phrase in PHRASES for clarity in CLARITIES), *QUIET)


@dataclass(frozen=True)
class Request:
    """One request about one recording; `text` is the whole user turn, `truth` the correct answer.

    ``truth`` is "yes" or "no" for a question, the tuple of sounds for a caption, the words for a transcription.
    """

    id: str
    recording: Recording
    text: str
    truth: Any
    cell: str
    hint_kind: HintKind = "none"
    hint_right: bool | None = None
    object: str = ""

    @property
    def question(self) -> str:
        """The request without its hint."""
        return language.ask(self.object) if self.object and self.truth in (YES, NO) else language.DESCRIBE

    @property
    def hint(self) -> str:
        """The hint alone, or ""."""
        return self.text.removesuffix(self.question).strip() if self.hint_kind != "none" else ""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The user turn in the messages format, with its audio as (samples, rate)."""
        sound = {"type": "audio", "audio": (self.recording.samples(), RATE)}
        return [{"role": "user", "content": [sound, {"type": "text", "text": self.text}]}]


def questions(split: Split, cell: str, n: int = 1000, seed: int = 0) -> list[Request]:
    """Return the first n questions of a cell; half of the answers are yes. Different seeds draw different recordings.

    Raises ValueError for a cell that is not in `CELLS`, or a seed below 0.
    """
    check_cell(cell, CELLS, seed)
    name, _, clarity = cell.partition("/")
    return [_question(split, name, _clarity(clarity), seed, number) for number in range(n)]


def captions(
    split: Split, hint: str = "none", n: int = 200, seed: int = 0, clarity: Clarity = "clear"
) -> list[Request]:
    """Return the first n caption requests; hint is one of `SETS` (wrong: an absent sound, or another place)."""
    if hint not in SETS:
        raise ValueError(f"hint must be one of {', '.join(SETS)}; got {hint!r}")
    return [_caption(split, hint, clarity, seed, number) for number in range(n)]


def transcriptions(split: Split, name: str, n: int = 200, seed: int = 0) -> list[Request]:
    """Return the first n transcription requests of one of `SPEECH_SETS`; reads the shipped voices for speech."""
    if name not in SPEECH_SETS:
        raise ValueError(f"set must be one of {', '.join(SPEECH_SETS)}; got {name!r}")
    kind, _, clarity = name.partition("/")
    out = []
    for number in range(n):
        index = _index(seed, number) + 700_000
        if clarity:
            phrase = next(p for p in PHRASES if p == kind)
            one = recording(split, "speech", _clarity(clarity), index, phrase=phrase)
        else:
            one = recording(split, next(k for k in QUIET if k == kind), "clear", index)
        words = one.names if clarity else ()
        key = f"{split}/speech-{name}/{seed}/{number}"
        out.append(Request(key, one, language.TRANSCRIBE, language.transcript(words), name))
    return out


def _question(split: Split, name: str, clarity: Clarity, seed: int, number: int) -> Request:
    rng = np.random.default_rng([6, seed, number])
    one = recording(split, "events", clarity, _index(seed, number))
    label = YES if number % 2 == 0 else NO
    candidates = one.names if label == YES else _absent(one)
    thing = candidates[int(rng.integers(len(candidates)))]
    kind, right = _hint_kind(name)
    hint = question_hint(language, kind, thing, (label == YES) == right, rng)
    cell = f"{name}/{clarity}"
    return Request(f"{split}/{cell}/{seed}/{number}", one, hint + language.ask(thing), label, cell, kind, right, thing)


def _caption(split: Split, name: str, clarity: Clarity, seed: int, number: int) -> Request:
    rng = np.random.default_rng([7, seed, number])
    one = recording(split, "events", clarity, _index(seed, number) + 500_000)
    kind, right = _hint_kind(name)
    hint, thing = caption_hint(language, kind, right, one.names, _absent(one), rng)
    cell = f"{name}/{clarity}"
    key = f"{split}/caption-{cell}/{seed}/{number}"
    return Request(key, one, hint + language.DESCRIBE, one.names, cell, kind, right, thing or "")


def _clarity(name: str) -> Clarity:
    return next(c for c in CLARITIES if c == name)


def _absent(one: Recording) -> tuple[str, ...]:
    return tuple(name for name in EVENTS if name not in one.names)


def _index(seed: int, number: int) -> int:
    return 1_000_000 * seed + number
