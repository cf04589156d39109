"""Speech-to-text with any audio model: long recordings are split at silences, with relevance over time per word."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from limelight.decoding.answer import end_tokens
from limelight.decoding.generate import generate
from limelight.decoding.loop import ending
from limelight.decoding.steps import OnStep
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
    """One chunk of the audio and its transcription.

    Attributes:
        start, stop: seconds from the start of the audio.
        generation: the answer, with relevance over this chunk's seconds if requested.
        quiet: the chunk ends in a silence (or at the end of the audio); otherwise a word may have been cut in two.
        complete: the model ended the transcription itself, before the token limit.
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
    """A transcription: ``segments`` in order, without gaps or overlap, and the ``prompt`` used for them."""

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
    """Transcribe audio of any length.

    Args:
        model: a transformers audio model, or an :class:`Adapter` (then ``processor`` may be None).
        sound: a file (audio, or a video's audio track), ``(samples, rate)``, or anything else that
            :func:`limelight.generate` takes as ``media={"audio": ...}``.
        prompt: the instruction; by default the one the model was trained for (:func:`default_prompt`). ``{language}`` is
            filled in.
        language: named in the prompt; detected by the model if omitted.
        strategy, relevance: as for :func:`limelight.generate`.
        chunk_seconds: maximum chunk length; by default 30 s, or the model's own window where that is shorter.
        max_new_tokens: per chunk; by default 64 plus 12 per second. A segment that reaches it has ``complete=False``.
        on_segment: called with each segment when it is finished.
        streamer: a transformers streamer; it receives all chunks as one answer, and is ended after the last one.

    Raises:
        MediaError: no audio, or a chunk longer than the model's window (use a smaller ``chunk_seconds``).
        SettingError: a language is given but the prompt has no placeholder for it.

    Example:
        >>> transcript = limelight.transcribe(adapter, sound="talk.mp3", strategy="aad")  # doctest: +SKIP
        >>> print(transcript.text, [s.generation.shares() for s in transcript.segments])  # doctest: +SKIP
    """
    with ending(streamer) as sink:
        adapter = wrap(model, processor)
        if sound is None:
            raise MediaError("no audio to transcribe", hint="transcribe(adapter, sound='talk.wav')")
        instruction = prompt_for(adapter, prompt, language)
        rate = sampling_rate(adapter)
        samples = read_audio(_one(sound), rate, max_seconds=MAX_SECONDS)
        found: list[Segment] = []
        joined = None if sink is None else _JoinedStreamer(sink)
        for piece in cut(adapter, samples, rate, chunk_seconds):
            one = segment(
                adapter, samples, rate, piece, instruction, strategy=strategy, relevance=relevance,
                max_new_tokens=max_new_tokens, streamer=joined, **generation_kwargs,
            )  # fmt: skip
            found.append(one)
            if on_segment is not None:
                on_segment(one)
        if sink is not None:
            sink.end()
    first = found[0].generation
    settings = {"strategy": first.strategy, **first.settings}
    return Transcript(tuple(found), samples.size / rate, instruction, settings)


def _one(sound: Any) -> Any:
    """Return the single audio item, given in any of the accepted forms.

    Raises:
        MediaError: several, or none.
    """
    if not isinstance(sound, Mapping) or "audio" not in sound:
        return item("audio", sound)
    found = by_kind(sound)
    if [len(found[kind]) for kind in found] != [int(kind == "audio") for kind in found]:
        raise MediaError(
            f"expected one audio item, got {', '.join(f'{len(v)} {k}' for k, v in found.items() if v) or 'none'}",
            hint="transcribe them one by one",
        )
    return found["audio"][0]


class _JoinedStreamer:
    """Joins several answers into one stream: only the first prompt is passed on, and ``end`` is left to the caller."""

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
        """Do nothing; the caller ends the stream after the last chunk."""


def cut(
    adapter: Adapter, samples: Samples, rate: int, chunk_seconds: float | None = None, usual: float = CHUNK_SECONDS
) -> list[Piece]:
    """Split the audio into chunks of at most ``chunk_seconds``, by default ``usual`` or the model's window if shorter.

    Raises:
        SettingError: chunks shorter than 0.2 s.
    """
    window = window_seconds(adapter.processor)
    if chunk_seconds is None:
        return pieces(samples, rate, min(usual, window or usual))
    # processors that window internally accept longer chunks; the others refuse them (media.truncation)
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
    """Transcribe one chunk of the audio."""
    start, stop = piece.start / rate, piece.stop / rate
    most = token_limit(stop - start) if max_new_tokens is None else max_new_tokens
    asked = adapter.prepare(prompt, {"audio": (samples[piece.start : piece.stop], rate)})
    if max_new_tokens is None and adapter.encoder is not None and adapter.encoder.most is not None:
        most = min(most, adapter.encoder.most - len(asked.tokens))
    generation = generate(
        adapter, None, asked, strategy=strategy, relevance=relevance, max_new_tokens=most, on_step=on_step,
        **generation_kwargs,
    )  # fmt: skip
    ids = generation.token_ids
    ended = bool(ids) and (ids[-1] in end_tokens(adapter) or len(ids) < most)
    return Segment(start, stop, generation, piece.quiet, ended)


def token_limit(seconds: float) -> int:
    """Return a token limit that suffices for the fastest speech of this duration in most scripts."""
    return 64 + 12 * math.ceil(seconds)


def prompt_for(adapter: Adapter, prompt: str | None = None, language: str | None = None) -> str:
    """Return the transcription prompt with the language filled in.

    Raises:
        SettingError: the prompt is empty, contains ``{language}`` without a language, or lacks the placeholder.
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
    """Return the default transcription prompt: the config's ``transcription_prompt``, the processor's, or the family's."""
    for owner, name in (
        (adapter.model.config, "transcription_prompt"),
        (adapter.processor, "default_transcription_prompt"),
    ):
        value = getattr(owner, name, None)
        if isinstance(value, str) and value.strip():
            return value
    return adapter.family.transcribe
