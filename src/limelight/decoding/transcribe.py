"""Speech-to-text with any audio model: long recordings are split at silences, and every word is measured.

With ``drop_invented`` segments that the audio does not support are left out: sentences printed over silence or noise. Source
of the criterion: this library (a segment's mean :attr:`limelight.types.Step.support`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, SupportsFloat

from limelight.calibration import Calibration
from limelight.decoding.answer import end_markers, end_tokens
from limelight.decoding.explain import watched
from limelight.decoding.generate import chosen_strategy, generate
from limelight.decoding.loop import ending
from limelight.decoding.steps import OnStep
from limelight.decoding.strategy import Strategy
from limelight.errors import MediaError, SettingError, UnknownKindError, UnsupportedError
from limelight.media.arguments import by_kind, item
from limelight.media.audio import Samples, read_audio
from limelight.media.split_on_silence import Piece, pieces
from limelight.media.truncation import window_seconds
from limelight.models.adapter import Adapter, wrap
from limelight.models.prompts import sampling_rate
from limelight.types import Generation, Prompt, Step

CHUNK_SECONDS = 30.0
MAX_SECONDS = 3 * 3600.0
LANGUAGE = " The language is {language}."
COMPOSITE = "attnlrp"  # of the meter
PART = "\ufffd"  # what a part of a character is decoded to
# For models of a family that have no calibration of their own; a little below that of whisper-tiny.en, to lose no speech.
FAMILY_THRESHOLDS = {"whisper": 2.5}  # in units of the logit


@dataclass(frozen=True)
class Segment:
    """One chunk of the audio and its transcription.

    Attributes:
        start, stop: seconds from the start of the audio.
        generation: the answer, with relevance over this chunk's seconds if requested.
        ends_in_silence: the chunk ends in a silence (or at the end of the audio); otherwise a word may have been cut in two.
        complete: the model ended the transcription itself, before the token limit.
        grounding: mean ``Step.grounding`` over the tokens with letters or digits, or over all where none has any; None where no meter
            ran or there are no tokens.
        support: mean ``Step.support`` over them, in units of the logit. It tells invented segments better than ``grounding``: over
            silence all tokens get little of their logits from the audio, so that the standard deviation by which the
            latter is divided is small as well.
        invented: the audio does not support it: ``support`` is below the threshold. False where no meter ran or no threshold
            is known.
    """

    start: float
    stop: float
    generation: Generation
    ends_in_silence: bool = True
    complete: bool = True
    grounding: float | None = None
    support: float | None = None
    invented: bool = False

    @property
    def text(self) -> str:
        return self.generation.text


@dataclass(frozen=True)
class Transcript:
    """A transcription.

    Attributes:
        segments: in order, without overlap; without gaps unless segments were dropped.
        prompt: the prompt used for them.
        dropped: segments that ``drop_invented`` left out.
        threshold: a segment's support below it marks the segment as invented; None: unknown for this model.
    """

    segments: tuple[Segment, ...]
    seconds: float
    prompt: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    dropped: tuple[Segment, ...] = ()
    threshold: float | None = None

    @property
    def text(self) -> str:
        return " ".join(s.text for s in self.segments if s.text)

    def __str__(self) -> str:
        return self.text


def transcribe(
    model: Any,
    processor: Any = None,
    audio: Any = None,
    *,
    prompt: str | None = None,
    language: str | None = None,
    strategy: Strategy | str | None = None,
    relevance: bool | None = None,
    meter: bool | None = None,
    drop_invented: bool | float = False,
    chunk_seconds: float | None = None,
    max_new_tokens: int | None = None,
    on_segment: Callable[[Segment], None] | None = None,
    streamer: Any = None,
    **generation_kwargs: Any,
) -> Transcript:
    """Transcribe audio of any length.

    Args:
        model: a transformers audio model, or an :class:`Adapter` (then ``processor`` may be None).
        audio: a file (audio, or a video's audio track), ``(samples, rate)``, or anything else that
            :func:`limelight.generate` takes as ``media={"audio": ...}``.
        prompt: the instruction; by default the one the model was trained for (:func:`default_prompt`). ``{language}`` is
            filled in.
        language: named in the prompt; detected by the model if omitted.
        strategy, relevance: as for :func:`limelight.generate`.
        meter: measure each word's grounding (``Step.grounding``, ``Step.flagged``, :attr:`Segment.grounding`). None: where
            the model allows it.
        drop_invented: leave out segments that the audio does not support, into ``Transcript.dropped``. True: with the
            threshold of the model's calibration, or the one of its family; a number: with this threshold.
        chunk_seconds: maximum chunk length; by default 30 s, or the model's own window where that is shorter.
        max_new_tokens: per chunk; by default 64 plus 12 per second. A segment that reaches it has ``complete=False``.
        on_segment: called with each segment when it is finished, those that are dropped included (``Segment.invented``).
        streamer: a transformers streamer; it receives all chunks as one answer, and is ended after the last one. With
            ``drop_invented`` it receives each segment when it is finished.

    Raises:
        MediaError: no audio, or a chunk longer than the model's window (use a smaller ``chunk_seconds``).
        SettingError: a language is given but the prompt has no placeholder for it; ``drop_invented`` without a threshold.
        UnsupportedError, UnknownKindError: ``meter`` or ``drop_invented`` with a model that cannot be measured.

    Example:
        >>> transcript = limelight.transcribe(adapter, audio="talk.mp3", drop_invented=True)  # doctest: +SKIP
        >>> print(transcript.text, [(s.text, s.support) for s in transcript.dropped])  # doctest: +SKIP
    """
    with ending(streamer) as sink:
        adapter = wrap(model, processor)
        if audio is None:
            raise MediaError("no audio to transcribe", hint="transcribe(adapter, audio='talk.wav')")
        instruction = prompt_for(adapter, prompt, language)
        limit = segment_threshold(adapter, drop_invented)
        rate = sampling_rate(adapter)
        samples = read_audio(single_audio(audio), rate, max_seconds=MAX_SECONDS)
        drop = drop_invented is not False
        joined = None if sink is None else _JoinedStreamer(sink, hold=drop)
        run = Transcriber(
            adapter, samples, rate, instruction, chosen_strategy(strategy), relevance=relevance,
            meter=True if drop else meter, threshold=limit, max_new_tokens=max_new_tokens, options=generation_kwargs,
        )  # fmt: skip
        kept: list[Segment] = []
        dropped: list[Segment] = []
        for piece in cut(adapter, samples, rate, chunk_seconds):
            one = run.segment(piece, streamer=joined)
            out = drop and one.invented
            (dropped if out else kept).append(one)
            if joined is not None:
                joined.release(keep=not out)
            if on_segment is not None:
                on_segment(one)
        if sink is not None:
            sink.end()
    first = (kept or dropped)[0].generation
    settings = {"strategy": first.strategy, **first.settings}
    return Transcript(tuple(kept), samples.size / rate, instruction, settings, tuple(dropped), limit)


def single_audio(audio: Any) -> Any:
    """Return the single audio item, given in any of the accepted forms.

    Raises:
        MediaError: several, or none.
    """
    if not isinstance(audio, Mapping) or "audio" not in audio:
        return item("audio", audio)
    found = by_kind(audio)
    if [len(found[kind]) for kind in found] != [int(kind == "audio") for kind in found]:
        raise MediaError(
            f"expected one audio item, got {', '.join(f'{len(v)} {k}' for k, v in found.items() if v) or 'none'}",
            hint="transcribe them one by one",
        )
    return found["audio"][0]


class _JoinedStreamer:
    """Joins several answers into one stream: only the first prompt is passed on, and ``end`` is left to the caller.

    ``hold``: tokens wait until ``release`` says whether their segment is kept.
    """

    def __init__(self, streamer: Any, hold: bool = False) -> None:
        self.streamer, self.hold = streamer, hold
        self.begun = False
        self.held: list[Any] = []

    @property
    def next_tokens_are_prompt(self) -> bool:
        return not self.begun and bool(self.streamer.next_tokens_are_prompt)

    def put(self, value: Any) -> None:
        if self.hold and self.begun:
            self.held.append(value)
            return
        self.begun = True
        self.streamer.put(value)

    def release(self, *, keep: bool) -> None:
        """Pass on what was held back, or forget it."""
        for value in self.held if keep else ():
            self.streamer.put(value)
        self.held.clear()

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


@dataclass
class Transcriber:
    """Transcribes the chunks of one recording with the same settings.

    Attributes:
        meter: None: where the model allows it, which the first chunk shows; ``unmeasured`` then says why not.
        threshold: see :attr:`Transcript.threshold`.
    """

    adapter: Adapter
    samples: Samples
    rate: int
    prompt: str
    strategy: Strategy
    relevance: bool | None = None
    meter: bool | None = None
    threshold: float | None = None
    max_new_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    unmeasured: str = ""

    def segment(self, piece: Piece, *, on_step: OnStep | None = None, streamer: Any = None) -> Segment:
        """Transcribe one chunk."""
        if self.meter is not None:
            return self._segment(piece, self.meter, on_step, streamer)
        try:
            one = self._segment(piece, True, on_step, streamer)
            self.meter = True
        except (UnknownKindError, UnsupportedError) as error:
            one = self._segment(piece, False, on_step, streamer)  # raises where the meter was not the reason
            self.meter, self.unmeasured = False, error.message
        return one

    def _segment(self, piece: Piece, meter: bool, on_step: OnStep | None, streamer: Any) -> Segment:
        return segment(
            self.adapter, self.samples, self.rate, piece, self.prompt,
            strategy=watched(self.strategy) if meter else self.strategy, relevance=self.relevance,
            threshold=self.threshold, max_new_tokens=self.max_new_tokens, on_step=on_step, streamer=streamer, **self.options,
        )  # fmt: skip


def segment(
    adapter: Adapter,
    samples: Samples,
    rate: int,
    piece: Piece,
    prompt: str,
    *,
    strategy: Strategy | str | None = None,
    relevance: bool | None = None,
    threshold: float | None = None,
    max_new_tokens: int | None = None,
    on_step: OnStep | None = None,
    **generation_kwargs: Any,
) -> Segment:
    """Transcribe one chunk of the audio; ``threshold``: of :attr:`Segment.invented`."""
    start, stop = piece.start / rate, piece.stop / rate
    asked = adapter.prepare(prompt, {"audio": (samples[piece.start : piece.stop], rate)})
    most = token_limit(stop - start, adapter, asked) if max_new_tokens is None else max_new_tokens
    generation = generate(
        adapter, None, asked, strategy=strategy, relevance=relevance, max_new_tokens=most, on_step=on_step,
        **generation_kwargs,
    )  # fmt: skip
    ids = generation.token_ids
    ended = bool(ids) and (ids[-1] in end_tokens(adapter) or len(ids) < most)
    means = segment_means(generation.steps, special_tokens(adapter))
    invented = is_invented(generation.text, means, threshold)
    return Segment(start, stop, generation, piece.ends_in_silence, ended, *means, invented)


class Means(NamedTuple):
    """What the audio does for a segment; see :class:`Segment`."""

    grounding: float | None
    support: float | None


def segment_means(steps: Sequence[Step], special: Collection[int]) -> Means:
    """Means over the tokens with letters, digits or parts of them, else over all; ``special`` ones are left out. None where
    there are none or no meter ran."""
    own = [s for s in steps if s.token not in special and s.text.strip()]
    spoken = [
        s for s in own if any(c.isalnum() or c == PART for c in s.text)
    ] or own  # a lone "." or "♪" is judged, too

    def mean(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None

    return Means(mean([s.grounding for s in spoken]), mean([s.support for s in spoken]))


special_tokens = end_markers  # the ids that stand for no text


def is_invented(text: str, means: Means, threshold: float | None) -> bool:
    """Whether a segment's support is below the threshold; False for an empty one, or where either is unknown."""
    return bool(text) and threshold is not None and means.support is not None and means.support < threshold


def segment_threshold(adapter: Adapter, drop_invented: bool | float = False) -> float | None:
    """The support below which a segment counts as invented: a given number, else the calibration's, else the family's.

    Raises:
        SettingError: segments are to be dropped and none is known, or the number is not finite.
    """
    if not isinstance(drop_invented, bool):
        if not isinstance(drop_invented, SupportsFloat) or not math.isfinite(drop_invented):
            raise SettingError(
                f"expected a finite threshold, got {drop_invented!r}", hint="without one, the model's own is used"
            )
        return float(drop_invented)
    calibration: Calibration | None = adapter.calibration
    own = calibration.segment_threshold if calibration is not None and calibration.composite == COMPOSITE else None
    found = FAMILY_THRESHOLDS.get(adapter.family.name) if own is None else own
    if found is None and drop_invented:
        raise SettingError(
            f"no threshold is known below which a segment of this {adapter.family.name} model counts as invented",
            hint="`limelight calibrate MODEL FILE` fits one on recordings with a `reference`, some of them without words "
            '(`"reference": ""`); or pass a number: drop_invented=2.5 (--threshold 2.5)',
        )
    return found


def token_limit(seconds: float, adapter: Adapter | None = None, prompt: Prompt | None = None) -> int:
    """Return a token limit that suffices for the fastest speech of this duration in most scripts, and fits after ``prompt``."""
    wanted = 64 + 12 * math.ceil(seconds)
    most = None if adapter is None or adapter.encoder is None else adapter.encoder.most
    return wanted if most is None or prompt is None else max(1, min(wanted, most - len(prompt.tokens)))


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
