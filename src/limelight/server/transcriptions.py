"""POST /v1/audio/transcriptions: a sound in a form, its words in OpenAI's shapes."""

from __future__ import annotations

import math
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import Request

from limelight.decoding.dual import flag_of
from limelight.decoding.transcribe import cut, prompt_for, token_limit
from limelight.errors import MediaError
from limelight.models.adapter import Adapter
from limelight.report.subtitles import cue, document
from limelight.server import media
from limelight.server.admission import client_of
from limelight.server.answering import Finished, GenerationRequest, PromptSpec, TokenEvent
from limelight.server.conversation import Sound, spoken
from limelight.server.endpoint import Endpoint, sse
from limelight.server.forms import SpeechRequest, parse_form
from limelight.server.limits import Limits
from limelight.server.problems import invalid
from limelight.server.replies import grounded, grounding, number, plain, spelled
from limelight.server.responses import Grounding, Segment, SpeechUsage, Spelled, Transcription
from limelight.server.token_options import strategy_of

LANGUAGES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True)
class SpeechRequestSpec(GenerationRequest):
    """A sound to transcribe: an answer a piece, cut at silences as :func:`limelight.transcribe` does."""

    words: str = ""
    first_seed: int | None = None

    def prompt_specs(self, adapter: Adapter, limits: Limits) -> list[PromptSpec]:
        sound = next(p for _, parts in self.conversation.turns for p in parts if isinstance(p, Sound))
        samples, rate, found = sound.samples, sound.rate, []
        try:
            for k, piece in enumerate(cut(adapter, samples, rate)):
                start, stop = piece.start / rate, piece.stop / rate
                prompt = adapter.prepare(self.words, {"audio": (samples[piece.start : piece.stop], rate)})
                seed = None if self.first_seed is None else self.first_seed + k
                found.append(PromptSpec(prompt, seed, min(token_limit(stop - start), limits.new_tokens), (start, stop)))
        except MediaError as error:
            raise invalid(f"{error.message} ({error.hint})", param="file", code="invalid_media") from error
        return found


@dataclass
class SpeechShape:
    """A transcription in one of OpenAI's formats. Pieces decode side by side; a stream tells them in order."""

    asked: SpeechRequest
    request: GenerationRequest
    flag: Mapping[str, Any] = field(default_factory=dict)
    turn: int = 0
    has_text: bool = False
    begun: bool = False
    waiting: dict[int, list[TokenEvent | Finished]] = field(default_factory=dict)
    logprobs: list[Spelled] = field(default_factory=list)

    @property
    def stream(self) -> bool:
        return self.asked.stream

    def opening(self) -> list[str]:
        return []

    def events(self, event: TokenEvent | Finished) -> list[str]:
        self.waiting.setdefault(event.index, []).append(event)
        told: list[str] = []
        while self.waiting.get(self.turn):
            now = self.waiting[self.turn].pop(0)
            told += self._told(now)
            if isinstance(now, Finished):
                del self.waiting[self.turn]
                self.turn += 1
                self.begun = False
        return told

    def _told(self, event: TokenEvent | Finished) -> list[str]:
        extra: dict[str, Any] = {}
        if isinstance(event, TokenEvent) and event.step is not None:
            if self.asked.logprobs:
                extra["logprobs"] = [spelled(event.step.text, event.step.logprob)]
                self.logprobs += extra["logprobs"]
            if self.asked.limelight.grounding:
                extra["limelight"] = {"tokens": [grounded(event.step)]}
        if not (event.delta or extra):
            return []
        gap = " " if event.delta and self.has_text and not self.begun else ""  # between pieces
        self.begun = self.begun or bool(event.delta)
        self.has_text = self.has_text or bool(event.delta)
        return [sse({"type": "transcript.text.delta", "delta": gap + event.delta, **extra})]

    async def settled(self, done: Sequence[Finished]) -> None:
        pass

    def closing(self, done: Sequence[Finished]) -> list[str]:
        extra = {"logprobs": self.logprobs} if self.asked.logprobs else {}
        final = {"type": "transcript.text.done", "text": joined(done), **extra, "usage": usage_of(done)}
        return [sse({**final, "limelight": self._about(done, tokens=False)}), sse("[DONE]")]

    def whole(self, said: Sequence[TokenEvent], done: Sequence[Finished]) -> Response:
        pieces, form = sorted(done, key=lambda d: d.index), self.asked.response_format
        if form in ("text", "srt", "vtt"):
            text = joined(pieces) + "\n" if form == "text" else subtitles(pieces, form)
            return PlainTextResponse(text)
        about = self._about(pieces, tokens=True)
        out: Transcription = {"text": joined(pieces), "usage": usage_of(pieces), "limelight": about}
        if form == "verbose_json":
            seconds = pieces[-1].stretch[1] if pieces[-1].stretch else 0.0
            out["task"], out["language"], out["duration"] = "transcribe", self.asked.language or "", number(seconds)
            out["segments"] = [_segment(d, self.asked.temperature) for d in pieces]
        if self.asked.logprobs:
            ordered = sorted(said, key=lambda s: s.index)
            out["logprobs"] = [spelled(s.step.text, s.step.logprob) for s in ordered if s.step is not None]
        return JSONResponse(out)

    def _about(self, done: Sequence[Finished], *, tokens: bool) -> Grounding:
        used = self.request.strategy
        about: Grounding = {
            "strategy": used.name,
            "settings": plain(used.settings()),
            "seed": min(done, key=lambda d: d.index).seed,
        }
        if self.asked.limelight.grounding and tokens:
            steps = [s for d in done for s in d.steps[: len(d.steps) - (d.reason == "stop")]]
            about = {**about, **grounding(steps), "flag": plain(self.flag)}
        if self.request.conversation.warnings:
            about["warnings"] = list(self.request.conversation.warnings)
        return about


class Transcriptions(Endpoint):
    """The endpoint over one model that hears."""

    media_type = "multipart/form-data"

    async def accepted(self, request: Request, body: bytearray) -> tuple[GenerationRequest, SpeechShape]:
        config, adapter, limits = self.config, self.state.adapter, self.config.limits
        asked, data = await self.state.parsed(parse_form, request.headers, body, limits)
        if asked.model != config.model:
            raise invalid(
                f"there is no model of that name here, only {config.model!r}",
                param="model", code="model_not_found", status=404,
            )  # fmt: skip
        if "audio" not in adapter.placeholders.values():
            raise invalid("the model that is served here does not hear", param="model", code="model_cannot_hear")
        if any(p in asked.prompt for p in self.state.placeholders):
            raise invalid("the prompt holds one of the model's placeholders", param="prompt")
        if asked.limelight.page:
            raise invalid("a transcription has no page; ask for it in a chat", param="limelight")
        language = LANGUAGES.get(asked.language.lower(), asked.language) if asked.language else None
        words = " ".join(filter(None, (prompt_for(adapter, None, language), asked.prompt)))
        strategy = strategy_of(asked.limelight, config.strategy, config.strategies)
        samples = asked.temperature >= 1e-4
        seed = secrets.randbits(31) if samples else None
        file = media.sound(data, None, limits, self.state.media.rate)
        conversation = await spoken(file, words, self.state.media, client_of(request.scope))
        generation_request = SpeechRequestSpec(
            conversation, strategy, asked.limelight.grounding,
            sampling={"do_sample": True, "temperature": asked.temperature, "top_p": 1.0, "top_k": 0} if samples else {},
            words=words, first_seed=seed,
        )  # fmt: skip
        return generation_request, SpeechShape(asked, generation_request, flag_of(adapter, strategy))


def joined(pieces: Sequence[Finished]) -> str:
    return " ".join(d.text for d in sorted(pieces, key=lambda d: d.index) if d.text)


def subtitles(pieces: Sequence[Finished], form: str) -> str:
    """A cue a piece: the model tells no times within one."""
    told = [(*d.stretch, d.text) for d in pieces if d.text.strip() and d.stretch]
    return document([cue(start, stop, text, form, k) for k, (start, stop, text) in enumerate(told, start=1)], form)


def usage_of(done: Sequence[Finished]) -> SpeechUsage:
    """Every piece has a prompt of its own."""
    read, written = sum(d.prompt_tokens for d in done), sum(d.new_tokens for d in done)
    return {"type": "tokens", "input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _segment(done: Finished, temperature: float) -> Segment:
    start, stop = done.stretch or (0.0, 0.0)
    told = [s.logprob for s in done.steps if math.isfinite(s.logprob)]
    said = done.text.encode()
    return {
        "id": done.index, "seek": round(start * 100), "start": number(start), "end": number(stop), "text": done.text,
        "tokens": [s.token for s in done.steps], "temperature": temperature,
        "avg_logprob": number(sum(told) / len(told)) if told else None,
        "compression_ratio": number(len(said) / len(zlib.compress(said))) if said else None,
        "no_speech_prob": None,
    }  # fmt: skip
