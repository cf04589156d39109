"""Converting messages to tensors for encoder-decoders: one medium for the encoder, and the decoder's start ids.

Text is taken as preceding text (Whisper's previous transcript, the start of a caption). Text that contains the decoder's
start token is the complete decoder prompt: ``<|startoftranscript|><|de|><|transcribe|><|notimestamps|>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from limelight.errors import MediaError, PromptError
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.media.truncation import check_not_truncated
from limelight.models.families import Family
from limelight.models.inputs.encoder_decoder import ENCODER_DECODER, EncoderDecoder
from limelight.models.runtime.machine import machine_failed
from limelight.models.template import template_positions
from limelight.types import Inputs, Interval, Prompt, Span


class Reader(Protocol):
    """The parts of an :class:`~limelight.models.adapter.Adapter` that prepare a prompt."""

    model: Any
    processor: Any
    encoder: EncoderDecoder | None
    family: Family

    @property
    def tokenizer(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def complete(self, inputs: Mapping[str, Any]) -> dict[str, Any]: ...

    def words(self, inputs: Mapping[str, Any]) -> tuple[str, ...]: ...


def prepare(
    adapter: Reader, encoder: EncoderDecoder, turns: Sequence[Mapping[str, Any]], found: Mapping[str, list[Any]]
) -> Prompt:
    """Prepare one row: the encoder's input and the decoder's ids.

    Args:
        turns, found: from :func:`limelight.models.prompts.split_media`.

    Raises:
        MediaError: not exactly one medium of the encoder's modality, or audio longer than the encoder's window.
        PromptError: the processor or the tokenizer fails.
    """
    counts = {kind: len(media) for kind, media in found.items() if media}
    if counts != {encoder.kind: 1}:
        given = ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none"
        raise MediaError(
            f"{type(adapter.model).__name__} takes exactly one {encoder.kind}, the messages contain {given}",
            hint=f"media={{{encoder.kind!r}: file}}; for several, use one call each, or generate_many",
        )
    words = " ".join(i["text"].strip() for t in turns for i in t["content"] if i["type"] == "text").strip()
    duration: float | None = None
    if encoder.kind == "audio":
        rate = _rate(adapter)
        samples = read_audio(found["audio"][0], rate)
        tensors, duration = _audio_features(adapter, samples, rate), len(samples) / rate
        media: dict[str, list[Any]] = {"audio": [(samples, rate)]}
    else:
        picture = read_image(found["image"][0])
        tensors = _processed(lambda: _image_processor(adapter)(images=[picture], return_tensors="pt"))
        media = {"image": [picture]}
    device, dtype = adapter.device, adapter.model.dtype
    tensors = {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in tensors.items()}
    ids = decoder_ids(adapter, encoder, words, tensors)
    inputs = Inputs(adapter.complete({**tensors, ENCODER_DECODER.ids: torch.tensor([ids], device=device)}))
    span = Span(0, len(ids), "text")
    if duration is not None:
        span = replace(span, interval=Interval(0, 0.0, duration))
    inputs.spans = (span,)
    tokens = adapter.words(inputs)
    inputs.template = template_positions(tokens, (span,), [words])
    return Prompt(inputs, tokens, (span,), media, template=inputs.template)


def decoder_ids(adapter: Reader, encoder: EncoderDecoder, words: str, tensors: Mapping[str, Any]) -> list[int]:
    """Return the decoder's start ids for the text ``words``."""
    tokenizer = adapter.tokenizer
    if tokenizer is None:
        raise PromptError("this adapter has no tokenizer", hint="limelight.wrap(model, processor)")
    begin = tokenizer.convert_ids_to_tokens(list(encoder.start))
    if words and any(token and token in words for token in begin):
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])
    if adapter.family.decoder_prompt is not None:
        return adapter.family.decoder_prompt(adapter, words, tensors)
    text = list(tokenizer(words, add_special_tokens=False)["input_ids"]) if words else []
    return [*encoder.start, *text]


def _rate(adapter: Reader) -> int:
    return int(getattr(_extractor(adapter), "sampling_rate", 16000))


def _extractor(adapter: Reader) -> Any:
    found = getattr(adapter.processor, "feature_extractor", None)
    if found is None:
        raise PromptError("the processor has no feature extractor", hint="limelight.wrap(model, processor)")
    return found


def _image_processor(adapter: Reader) -> Any:
    found = getattr(adapter.processor, "image_processor", None)
    if found is None:
        raise PromptError("the processor has no image processor", hint="limelight.wrap(model, processor)")
    return found


def _processed(process: Any) -> dict[str, Any]:
    try:
        return dict(process())
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
        if machine_failed(error):
            raise
        raise PromptError(f"the model's processor rejected the media: {error}", hint="check the file") from error


def _audio_features(adapter: Reader, samples: Any, rate: int) -> dict[str, Any]:
    extractor = _extractor(adapter)

    def process(audio: list[Any]) -> Any:
        return extractor(audio, sampling_rate=rate, return_attention_mask=True, return_tensors="pt")

    out = _processed(lambda: process([samples]))
    check_not_truncated(process, [samples], out, rate, adapter.processor)
    return out
