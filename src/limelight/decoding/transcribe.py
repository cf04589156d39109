"""Speech to text with any audio model: long sounds in pieces cut at silences, each word with where it was heard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from limelight.decoding.answer import end_tokens
from limelight.decoding.generate import generate
from limelight.decoding.loop import OnStep, ending
from limelight.decoding.strategy import Strategy
from limelight.errors import MediaError, SettingError
from limelight.media.arguments import by_kind, item
from limelight.media.audio import Samples, read_audio
from limelight.media.split_on_silence import Piece, pieces
from limelight.media.truncation import window_seconds
from limelight.models.adapter import Adapter, wrap
from limelight.models.prompts import sampling_rate
from limelight.types import Generation

CHUNK_SECONDS = 30.0
MAX_SECONDS = 3 * 3600.0
LANGUAGE = " The language is {language}."


@dataclass(frozen=True)
class Segment:
    """One piece of the sound and what was heard in it.

    Attributes:
        start, stop: seconds from the start of the sound.
        generation: the answer, with relevance over this piece's seconds where it was asked for.
        quiet: it ends in a silence (or with the sound); otherwise a word may have been cut in two.
        complete: the model ended it by itself, not the limit of tokens.
    """

    start: float
    stop: float
    generation: Generation
    quiet: bool = True
    complete: bool = True

    @property
    def text(self) -> str:
        return self.generation.text


@dataclass(frozen=True)
class Transcript:
    """What was heard: ``segments`` in order, without gap or overlap, and the ``prompt`` that asked for them."""

    segments: tuple[Segment, ...]
    seconds: float
    prompt: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return " ".join(s.text for s in self.segments if s.text)

    def __str__(self) -> str:
        return self.text


def transcribe(
    model: Any,
    processor: Any = None,
    sound: Any = None,
    *,
    prompt: str | None = None,
    language: str | None = None,
    strategy: Strategy | str | None = None,
    relevance: bool | None = None,
    chunk_seconds: float | None = None,
    max_new_tokens: int | None = None,
    on_segment: Callable[[Segment], None] | None = None,
    streamer: Any = None,
    **generation_kwargs: Any,
) -> Transcript:
    """Transcribe a sound of any length.

    Args:
        model: a transformers audio model, or an :class:`Adapter` (then ``processor`` may be None).
        sound: a file (sound, or a video's sound), ``(samples, rate)``, or what else :func:`limelight.generate` takes as
            ``media={"audio": ...}``.
        prompt: what to ask; by default what the model was made for (:func:`default_prompt`). ``{language}`` is filled in.
        language: named in the prompt; the model finds out by itself where left out.
        strategy, relevance: as for :func:`limelight.generate`.
        chunk_seconds: longest piece; by default 30 s, or the model's own window where that is shorter.
        max_new_tokens: a piece; by default 64 and 12 more a second. A segment that reaches it has ``complete=False``.
        on_segment: called with each segment as it is done.
        streamer: a transformers streamer; it hears all pieces as one answer, and ends with the last of them.

    Raises:
        MediaError: no sound, or a piece is longer than the model hears (give a smaller ``chunk_seconds``).
        SettingError: a language that the prompt has no place for.

    Example:
        >>> heard = limelight.transcribe(adapter, sound="talk.mp3", strategy="aad")  # doctest: +SKIP
        >>> print(heard.text, [s.generation.shares() for s in heard.segments])  # doctest: +SKIP
    """
    with ending(streamer) as sink:
        adapter = wrap(model, processor)
        if sound is None:
            raise MediaError("no sound to transcribe", hint="transcribe(adapter, sound='talk.wav')")
        asked = prompt_for(adapter, prompt, language)
        rate = sampling_rate(adapter)
        samples = read_audio(_one(sound), rate, max_seconds=MAX_SECONDS)
        found: list[Segment] = []
        heard = None if sink is None else _Pieces(sink)
        for piece in cut(adapter, samples, rate, chunk_seconds):
            one = segment(
                adapter, samples, rate, piece, asked, strategy=strategy, relevance=relevance,
                max_new_tokens=max_new_tokens, streamer=heard, **generation_kwargs,
            )  # fmt: skip
            found.append(one)
            if on_segment is not None:
                on_segment(one)
        if sink is not None:
            sink.end()
    first = found[0].generation
    settings = {"strategy": first.strategy, **first.settings}
    return Transcript(tuple(found), samples.size / rate, asked, settings)


def _one(sound: Any) -> Any:
    """One sound, in any of the shapes in which media are taken.

    Raises:
        MediaError: several, or none.
    """
    if not isinstance(sound, Mapping) or "audio" not in sound:
        return item("audio", sound)
    found = by_kind(sound)
    if [len(found[kind]) for kind in found] != [int(kind == "audio") for kind in found]:
        raise MediaError(
            f"expected one sound, got {', '.join(f'{len(v)} {k}' for k, v in found.items() if v) or 'none'}",
            hint="transcribe them one by one",
        )
    return found["audio"][0]


class _Pieces:
    """One streamer for several answers: the prompt of the first alone, and no end between them."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.begun = False

    @property
    def next_tokens_are_prompt(self) -> bool:
        return not self.begun and bool(self.streamer.next_tokens_are_prompt)

    def put(self, value: Any) -> None:
        self.begun = True
        self.streamer.put(value)

    def end(self) -> None:
        """The caller ends it after the last piece."""


def cut(
    adapter: Adapter, samples: Samples, rate: int, chunk_seconds: float | None = None, usual: float = CHUNK_SECONDS
) -> list[Piece]:
    """The pieces in which a sound is transcribed: of ``chunk_seconds``, else ``usual`` or the model's window at most.

    Raises:
        SettingError: pieces shorter than 0.2 s.
    """
    window = window_seconds(adapter.processor)
    if chunk_seconds is None:
        return pieces(samples, rate, min(usual, window or usual))
    # processors that make windows themselves take more than one; those that do not refuse the piece (models.truncation)
    return pieces(samples, rate, chunk_seconds)


def segment(
    adapter: Adapter,
    samples: Samples,
    rate: int,
    piece: Piece,
    prompt: str,
    *,
    strategy: Strategy | str | None = None,
    relevance: bool | None = None,
    max_new_tokens: int | None = None,
    on_step: OnStep | None = None,
    **generation_kwargs: Any,
) -> Segment:
    """Transcribe one piece of a sound."""
    start, stop = piece.start / rate, piece.stop / rate
    most = token_limit(stop - start) if max_new_tokens is None else max_new_tokens
    asked = adapter.prepare(prompt, {"audio": (samples[piece.start : piece.stop], rate)})
    if max_new_tokens is None and adapter.encoder is not None and adapter.encoder.most is not None:
        most = min(most, adapter.encoder.most - len(asked.tokens))
    said = generate(
        adapter, None, asked, strategy=strategy, relevance=relevance, max_new_tokens=most, on_step=on_step,
        **generation_kwargs,
    )  # fmt: skip
    ended = bool(said.token_ids) and (said.token_ids[-1] in end_tokens(adapter) or len(said.token_ids) < most)
    return Segment(start, stop, said, piece.quiet, ended)


def token_limit(seconds: float) -> int:
    """Tokens that fit the fastest speech of so many seconds in most scripts."""
    return 64 + 12 * math.ceil(seconds)


def prompt_for(adapter: Adapter, prompt: str | None = None, language: str | None = None) -> str:
    """The words that ask for a transcription.

    Raises:
        SettingError: the prompt is empty, names ``{language}`` without one, or has no place for it.
    """
    if adapter.family.transcription is not None:
        return adapter.family.transcription(adapter, prompt, language)
    if prompt is None:
        base = default_prompt(adapter)
        return base if language is None else base + LANGUAGE.format(language=language)
    if not prompt.strip():
        raise SettingError("the prompt is empty", hint="leave it out for the model's own")
    if ("{language}" in prompt) != (language is not None):
        raise SettingError(
            "the prompt and the language do not go together",
            hint="write {language} where a prompt of your own should name it, and give the language with it",
        )
    return prompt.replace("{language}", language or "")


def default_prompt(adapter: Adapter) -> str:
    """What the model was made to be asked: its config's ``transcription_prompt``, its processor's, or its family's."""
    for owner, name in (
        (adapter.model.config, "transcription_prompt"),
        (adapter.processor, "default_transcription_prompt"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, str) and value.strip():
            return value
    return adapter.family.transcribe
