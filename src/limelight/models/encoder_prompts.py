"""Converting messages to tensors for encoder-decoders: one medium for the encoder, and the decoder's start ids.

Text is taken as preceding text (Whisper's previous transcript, the start of a caption). Text that contains the decoder's
start token is the complete decoder prompt: ``<|startoftranscript|><|de|><|transcribe|><|notimestamps|>``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from limelight.errors import MediaError, PromptError
from limelight.media.audio import read_audio
from limelight.media.image import read_image
from limelight.media.truncation import SHORT, check_not_truncated
from limelight.models.inputs.encoder_decoder import ENCODER_DECODER, EncoderDecoder
from limelight.models.runtime.machine import machine_failed
from limelight.models.template import template_positions
from limelight.types import Inputs, Interval, Prompt, Span

if TYPE_CHECKING:
    from limelight.models.adapter import Adapter

_TOKEN = re.compile(r"<\|[^|<>\s]+\|>")


def prepare(
    adapter: Adapter, encoder: EncoderDecoder, turns: Sequence[Mapping[str, Any]], found: Mapping[str, list[Any]]
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
        extractor = _part(adapter, "feature extractor")
        rate = int(getattr(extractor, "sampling_rate", 16000))
        samples = read_audio(found["audio"][0], rate)
        duration = len(samples) / rate

        def process(audio: list[Any]) -> Any:
            return extractor(audio, sampling_rate=rate, return_attention_mask=True, return_tensors="pt")

        tensors = _processed(process, [samples])
        check_not_truncated(process, [samples], tensors, rate, adapter.processor)
        media: dict[str, list[Any]] = {"audio": [(samples, rate)]}
    else:
        picture = read_image(found["image"][0])
        tensors = _processed(_part(adapter, "image processor"), images=[picture], return_tensors="pt")
        media = {"image": [picture]}
    device, dtype = adapter.device, adapter.model.dtype
    tensors = {  # processors also return numbers, such as which chunks belong to which sound (Cohere ASR)
        k: v.to(device, dtype if v.is_floating_point() else v.dtype)
        for k, v in tensors.items()
        if isinstance(v, Tensor)
    }
    rows = len(tensors[encoder.media]) if encoder.media in tensors else 0
    if rows != 1:
        length = "" if duration is None else f" of {duration:.1f} s"
        raise MediaError(
            f"the model's processor makes {rows or 'no'} inputs of one {encoder.kind}{length}, expected one",
            hint="split long audio into pieces; `limelight transcribe` and limelight.transcribe split at silences",
        )
    if duration is not None and duration < SHORT:
        _check_length(adapter, encoder, tensors, duration)
    ids = decoder_ids(adapter, encoder, words, tensors)
    inputs = Inputs(adapter.complete({**tensors, ENCODER_DECODER.ids: torch.tensor([ids], device=device)}))
    span = Span(0, len(ids), "text")
    if duration is not None:
        span = replace(span, interval=Interval(0, 0.0, duration))
    inputs.spans = (span,)
    tokens = adapter.words(inputs)
    inputs.template = template_positions(tokens, (span,), [words])
    return Prompt(inputs, tokens, (span,), media, template=inputs.template)


def _check_length(adapter: Adapter, encoder: EncoderDecoder, tensors: Mapping[str, Any], duration: float) -> None:
    """Raise MediaError where the encoder makes no states of a sound, because its convolutions are longer."""
    try:
        with adapter.exclusive():
            states = encoder.encoded(adapter.model, tensors)["encoder_outputs"][0]
        fits = states.shape[1] > 0 and bool(torch.isfinite(states).all())
    except (RuntimeError, ValueError, IndexError) as error:
        if machine_failed(error):
            raise
        fits = False
    if not fits:
        raise MediaError(
            f"audio of {duration:.3f} s is too short: {type(adapter.model).__name__} makes no states of it",
            hint="pass longer audio",
        )


def decoder_ids(adapter: Adapter, encoder: EncoderDecoder, words: str, tensors: Mapping[str, Any]) -> list[int]:
    """Return the decoder's start ids for the text ``words``."""
    tokenizer = adapter.tokenizer
    if tokenizer is None:
        raise PromptError("this adapter has no tokenizer", hint="limelight.wrap(model, processor)")
    begin = tokenizer.convert_ids_to_tokens(list(encoder.start))
    if words and any(token and token in words for token in begin):
        _check_known(tokenizer, words)
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])
    if adapter.family.decoder_prompt is not None:
        return adapter.family.decoder_prompt(adapter, words, tensors)
    text = list(tokenizer(words, add_special_tokens=False)["input_ids"]) if words else []
    return [*encoder.start, *text]


def _check_known(tokenizer: Any, words: str) -> None:
    """Raise PromptError for a token ``<|...|>`` that the tokenizer would spell out as text."""
    known = tokenizer.get_vocab()
    for token in _TOKEN.findall(words):
        if token not in known:
            raise PromptError(
                f"this model's tokenizer has no token {token}", hint=f"such as {', '.join(_similar(token, known))}"
            )


def _similar(token: str, known: Mapping[str, int]) -> list[str]:
    found = sorted(k for k in known if _TOKEN.fullmatch(k))
    return get_close_matches(token, found, n=3, cutoff=0.0)


def _part(adapter: Adapter, name: str) -> Any:
    found = getattr(adapter.processor, name.replace(" ", "_"), None)
    if found is None:
        raise PromptError(f"the processor has no {name}", hint="limelight.wrap(model, processor)")
    return found


def _processed(process: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    try:
        return dict(process(*args, **kwargs))
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError) as error:
        if machine_failed(error):
            raise
        raise PromptError(f"the model's processor rejected the media: {error}", hint="check the file") from error
