"""POST /v1/audio/transcriptions: OpenAI's transcription request and response formats."""

from __future__ import annotations

import math
import re
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import Request

from limelight.decoding.dual import flag_of
from limelight.decoding.transcribe import Means as SegmentMeans
from limelight.decoding.transcribe import (
    cut,
    is_invented,
    prompt_for,
    segment_means,
    segment_threshold,
    special_tokens,
    token_limit,
)
from limelight.errors import MediaError, SettingError
from limelight.models.adapter import Adapter
from limelight.report.subtitles import cue, document, marked
from limelight.report.words import flagged_words
from limelight.server import media
from limelight.server.admission import client_of
from limelight.server.answering import Finished, GenerationRequest, PromptSpec, TokenEvent
from limelight.server.conversation import Sound, spoken
from limelight.server.endpoint import Endpoint, sse
from limelight.server.forms import SpeechRequest, parse_form
from limelight.server.limits import Limits
from limelight.server.problems import invalid
from limelight.server.replies import grounded, grounding, number, plain, spelled
from limelight.server.responses import Dropped, Grounding, Means, Segment, SpeechUsage, Spelled, Transcription
from limelight.server.token_options import strategy_of

LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")  # in Whisper's prompts


@dataclass(frozen=True)
class SpeechRequestSpec(GenerationRequest):
    """A transcription request: one answer per piece, split at silences like :func:`limelight.transcribe`."""

    words: str = ""
    first_seed: int | None = None
    detected: list[str] = field(default_factory=list)  # the language of each piece whose prompt names one

    def prompt_specs(self, adapter: Adapter, limits: Limits) -> list[PromptSpec]:
        sound = next(p for _, parts in self.conversation.turns for p in parts if isinstance(p, Sound))
        samples, rate, found = sound.samples, sound.rate, []
        try:
            for k, piece in enumerate(cut(adapter, samples, rate)):
                start, stop = piece.start / rate, piece.stop / rate
                prompt = adapter.prepare(self.words, {"audio": (samples[piece.start : piece.stop], rate)})
                self.detected.extend(m[1] for t in prompt.tokens if (m := _LANGUAGE.fullmatch(t)))
                seed = None if self.first_seed is None else self.first_seed + k
                most = min(token_limit(stop - start, adapter, prompt), limits.new_tokens)
                found.append(PromptSpec(prompt, seed, most, (start, stop)))
        except MediaError as error:
            raise invalid(f"{error.message} ({error.hint})", param="file", code="invalid_media") from error
        return found


@dataclass
class SpeechShape:
    """Formats a transcription as OpenAI does. Pieces are decoded concurrently, but streamed in order.

    Attributes:
        threshold: a piece's support below it marks it as invented; None: unknown for this model.
        special: tokens that stand for no text.
    """

    options: SpeechRequest
    request: GenerationRequest
    flag: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    special: frozenset[int] = frozenset()
    turn: int = 0
    has_text: bool = False
    begun: bool = False
    waiting: dict[int, list[TokenEvent | Finished]] = field(default_factory=dict)
    logprobs: list[Spelled] = field(default_factory=list)

    @property
    def stream(self) -> bool:
        return self.options.stream

    def opening(self) -> list[str]:
        return []

    def events(self, event: TokenEvent | Finished) -> list[str]:
        self.waiting.setdefault(event.index, []).append(event)
        out: list[str] = []
        while queue := self.waiting.get(self.turn):
            last = queue[-1]
            if self.drops and not isinstance(last, Finished):
                break  # whether the piece is kept shows at its end
            if isinstance(last, Finished) and self._dropped(last):
                queue[:] = [last]
            now = queue.pop(0)
            if now is not last or not self._dropped(now):
                out += self._deltas(now)
            if isinstance(now, Finished):
                del self.waiting[self.turn]
                self.turn += 1
                self.begun = False
        return out

    @property
    def drops(self) -> bool:
        return self.options.limelight.drop_invented

    def _invented(self, done: Finished) -> bool:
        return is_invented(done.text, self._means(done), self.threshold)

    def _means(self, done: Finished) -> SegmentMeans:
        return segment_means(done.steps, self.special)

    def _dropped(self, event: TokenEvent | Finished) -> bool:
        return self.drops and isinstance(event, Finished) and self._invented(event)

    def _kept(self, done: Sequence[Finished]) -> list[Finished]:
        """The pieces of the transcript, in order."""
        return [d for d in sorted(done, key=lambda d: d.index) if not self._dropped(d)]

    def _deltas(self, event: TokenEvent | Finished) -> list[str]:
        extra: dict[str, Any] = {}
        if isinstance(event, TokenEvent) and event.step is not None:
            if self.options.logprobs:
                extra["logprobs"] = [spelled(event.step.text, event.step.logprob)]
                self.logprobs += extra["logprobs"]
            if self.options.limelight.grounding:
                extra["limelight"] = {"tokens": [grounded(event.step)]}
        if not (event.delta or extra):
            return []
        gap = " " if event.delta and self.has_text and not self.begun else ""  # between pieces
        self.begun = self.begun or bool(event.delta)
        self.has_text = self.has_text or bool(event.delta)
        return [sse({"type": "transcript.text.delta", "delta": gap + event.delta, **extra})]

    async def completed(self, done: Sequence[Finished]) -> None:
        pass

    def closing(self, done: Sequence[Finished]) -> list[str]:
        extra = {"logprobs": self.logprobs} if self.options.logprobs else {}
        final = {"type": "transcript.text.done", "text": joined(self._kept(done)), **extra, "usage": usage_of(done)}
        return [sse({**final, "limelight": self._about(done, tokens=False)}), sse("[DONE]")]

    def complete(self, tokens: Sequence[TokenEvent], done: Sequence[Finished]) -> Response:
        every, pieces, form = sorted(done, key=lambda d: d.index), self._kept(done), self.options.response_format
        if form in ("text", "srt", "vtt"):
            text = joined(pieces) + "\n" if form == "text" else subtitles(pieces, form)
            return PlainTextResponse(text)
        about = self._about(every, tokens=True)
        out: Transcription = {"text": joined(pieces), "usage": usage_of(every), "limelight": about}
        if form == "verbose_json":
            seconds = every[-1].interval[1] if every[-1].interval else 0.0
            out["task"], out["language"], out["duration"] = "transcribe", self._language(), number(seconds)
            out["segments"] = [self._segment(d) for d in pieces]
        if self.options.logprobs:
            there = {d.index for d in pieces}
            ordered = [s for s in sorted(tokens, key=lambda s: s.index) if s.index in there]
            out["logprobs"] = [spelled(s.step.text, s.step.logprob) for s in ordered if s.step is not None]
        return JSONResponse(out)

    def _language(self) -> str:
        """The request's, else the one that most pieces are in; "" where the model's prompts name none."""
        found = self.request.detected if isinstance(self.request, SpeechRequestSpec) else []
        return self.options.language or max(sorted(set(found)), key=found.count, default="")

    def _about(self, done: Sequence[Finished], *, tokens: bool) -> Grounding:
        used = self.request.strategy
        about: Grounding = {
            "strategy": used.name,
            "settings": plain(used.settings()),
            "seed": min(done, key=lambda d: d.index).seed,
        }
        if self.options.limelight.grounding and tokens:
            steps = [s for d in self._kept(done) for s in d.steps[: len(d.steps) - (d.reason == "stop")]]
            about = {**about, **grounding(steps), "flag": plain(self.flag)}
        if self.measured:
            about["threshold"] = self.threshold
        if self.drops:
            about["dropped"] = [
                _left_out(d, self._means(d)) for d in sorted(done, key=lambda d: d.index) if self._dropped(d)
            ]
        if self.request.conversation.warnings:
            about["warnings"] = list(self.request.conversation.warnings)
        return about

    @property
    def measured(self) -> bool:
        return self.request.grounding

    def _segment(self, done: Finished) -> Segment:
        out = _segment(done, self.options.temperature)
        if self.measured:
            out["limelight"] = {**_rounded(self._means(done)), "invented": self._invented(done)}
        return out


class Transcriptions(Endpoint):
    """The transcription endpoint of a model that accepts audio."""

    media_type = "multipart/form-data"

    async def accepted(self, request: Request, body: bytearray) -> tuple[GenerationRequest, SpeechShape]:
        config, adapter, limits = self.config, self.state.adapter, self.config.limits
        options, data = await self.state.parsed(parse_form, request.headers, body, limits)
        self.check_model(options.model)
        if "audio" not in adapter.modalities:
            raise invalid("the model does not accept audio", param="model", code="audio_not_supported")
        if any(p in options.prompt for p in self.state.placeholders):
            raise invalid("the prompt contains one of the model's placeholders", param="prompt")
        if options.limelight.page:
            raise invalid("transcriptions have no page; use chat completions", param="limelight")
        language = LANGUAGES.get(options.language.lower(), options.language) if options.language else None
        if adapter.encoder is None:
            words = " ".join(filter(None, (prompt_for(adapter, None, language), options.prompt)))
        else:
            words = prompt_for(adapter, options.prompt or None, language)
        strategy = strategy_of(options.limelight, config.strategy, config.strategies)
        extra = options.limelight
        measures = extra.grounding or extra.drop_invented or extra.threshold is not None
        try:
            wanted = extra.drop_invented if extra.threshold is None else extra.threshold
            threshold = segment_threshold(adapter, wanted) if measures else None
        except SettingError as error:
            raise invalid(f"{error.message} ({error.hint})", param="limelight.drop_invented") from error
        samples = options.temperature >= 1e-4
        seed = secrets.randbits(31) if samples else None
        file = media.sound(data, None, limits, self.state.media.rate)
        conversation = await spoken(file, words, self.state.media, client_of(request.scope))
        generation_request = SpeechRequestSpec(
            conversation, strategy, measures,
            sampling={"do_sample": True, "temperature": options.temperature, "top_p": 1.0, "top_k": 0} if samples else {},
            words=words, first_seed=seed,
        )  # fmt: skip
        return generation_request, SpeechShape(
            options, generation_request, flag_of(adapter, strategy), threshold, special_tokens(adapter)
        )


def joined(pieces: Sequence[Finished]) -> str:
    return " ".join(d.text for d in sorted(pieces, key=lambda d: d.index) if d.text)


def subtitles(pieces: Sequence[Finished], form: str) -> str:
    """Format one cue per piece: the model gives no times within a piece. Flagged words are underlined."""
    timed = [
        (*d.interval, marked(d.text, flagged_words(d.text, d.steps))) for d in pieces if d.text.strip() and d.interval
    ]
    return document([cue(start, stop, text, form, k) for k, (start, stop, text) in enumerate(timed, start=1)], form)


def _rounded(means: SegmentMeans) -> Means:
    grounding, support = (None if v is None else number(v) for v in means)
    return {"grounding": grounding, "support": support}


def _left_out(done: Finished, means: SegmentMeans) -> Dropped:
    start, stop = done.interval or (0.0, 0.0)
    return {"start": number(start), "end": number(stop), "text": done.text, **_rounded(means)}


def usage_of(done: Sequence[Finished]) -> SpeechUsage:
    """Sum the usage of all pieces, each of which has its own prompt."""
    read, written = sum(d.prompt_tokens for d in done), sum(d.new_tokens for d in done)
    return {"type": "tokens", "input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _segment(done: Finished, temperature: float) -> Segment:
    start, stop = done.interval or (0.0, 0.0)
    logprobs = [s.logprob for s in done.steps if math.isfinite(s.logprob)]
    encoded = done.text.encode()
    return {
        "id": done.index, "seek": round(start * 100), "start": number(start), "end": number(stop), "text": done.text,
        "tokens": [s.token for s in done.steps], "temperature": temperature,
        "avg_logprob": number(sum(logprobs) / len(logprobs)) if logprobs else None,
        "compression_ratio": number(len(encoded) / len(zlib.compress(encoded))) if encoded else None,
        "no_speech_prob": None,
    }  # fmt: skip
