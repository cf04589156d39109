"""Second prompts for contrastive methods: the same prompt with media removed or distorted, or with inserted tokens.

Every function returns a :class:`Stream` with its own cache. Rows may be left-padded; positions are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight import compat
from limelight.decoding.continuing import is_media
from limelight.decoding.strategy import GenerationContext
from limelight.decoding.streams import second_stream
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.models.inputs.decoder_inputs import MODEL
from limelight.models.runtime.cached_decoder import Stream

Change = Callable[[str, Tensor, Mapping[str, Any]], Tensor]


def media_mask(context: GenerationContext) -> Tensor:
    """Return a mask ``[B, T]`` of the prompt's media positions, padding excluded."""
    return (context.modality_ids > 0) & context.mask


def without(context: GenerationContext, dropped: Tensor) -> Stream:
    """Return a stream of the prompt without the positions ``dropped`` (bool ``[B, T]``) and without any media.

    The remaining tokens are made contiguous: rows are left-padded again, and positions continue where the dropped ones
    began (M-RoPE: on every axis).

    Raises:
        PromptError: a row has no tokens left.
        UnsupportedError: an input whose axes are not declared.
    """
    context.require_prompt(words_only=True)
    refuse_encoder_decoder(context, "a prompt without its media", "an encoder-decoder always reads some")
    keep = context.mask & ~dropped
    if not bool(keep.any(-1).all()):
        raise PromptError("a prompt is empty without its media", hint="add text to the prompt")
    own = ("past_key_values", "attention_mask", compat.ENCODED_MEDIA, "inputs_embeds")
    words = MODEL.without_media({k: v for k, v in context.kwargs.items() if k not in own})
    words = MODEL.each(words, lambda axes, v, _: v * ~media_mask(context) if axes.new == "zero" else v)
    left = MODEL.drop({"input_ids": context.ids, "attention_mask": context.mask.long(), **words}, keep, context.mask)
    pad = compat.pad_token(context.config)
    ids = left.pop("input_ids").masked_fill(left["attention_mask"] == 0, 0 if pad is None else int(pad))
    return second_stream(context, ids, {"past_key_values": context.kwargs.get("past_key_values"), **left})


def inserted(context: GenerationContext, words: Sequence[int], at: Sequence[int]) -> Stream:
    """Return a stream of the prompt with token ids ``words`` inserted before position ``at[row]`` of each row; media are
    kept.

    Raises:
        UnsupportedError: a prepared attention mask, which cannot be extended; an input whose axes are not declared.
    """
    context.require_prompt()
    refuse_encoder_decoder(context, "a prompt with an instruction", "this decoder is given no instructions")
    new = torch.as_tensor(words, dtype=context.ids.dtype, device=context.ids.device)
    own = {k: context.kwargs[k] for k in ("past_key_values", "inputs_embeds") if context.kwargs.get(k) is not None}
    rest = {k: v for k, v in context.kwargs.items() if k not in own}
    kwargs = MODEL.insert(rest, at, len(words))
    if "inputs_embeds" in own:
        embeds = own["inputs_embeds"]
        own["inputs_embeds"] = _put(embeds, context.adapter.embed(new)[..., : embeds.shape[-1]].to(embeds), at)
    ids = _put(context.ids, new, at)
    return second_stream(context, ids, {**own, **kwargs})


def _put(value: Tensor, new: Tensor, at: Sequence[int]) -> Tensor:
    """Insert ``new`` [n, ...] into ``value`` [B, T, ...] before position ``at[row]``."""
    return torch.stack([torch.cat([row[:k], new, row[k:]]) for row, k in zip(value, at, strict=True)])


def disturbed(
    context: GenerationContext, change: Change, *, only: Callable[[str], bool] = lambda name: True, method: str
) -> Stream:
    """Return a stream of the prompt with ``change(name, features, inputs)`` applied to each tensor of pixels or audio.

    transformers has run the vision encoders before a custom decoding method is called, so the processor's tensors must be
    available (``GenerationContext.tensors``) unless the model takes its media at the prefill; the encoders are then run
    on the changed media.

    Raises:
        SettingError: the media's tensors are not available, or belong to another prompt.
    """
    context.require_prompt()
    if context.adapter.encoder is not None:
        return _disturbed_encoder(context, change, method)
    kwargs = compat.without_encoded_media(context.kwargs)
    encoded = compat.encoded_media(context.kwargs)
    times = 1
    if context.tensors:
        times = _times(context)
        skipped = ("input_ids", "attention_mask", "modality_ids")
        kwargs |= {k: _placed(v, context) for k, v in context.tensors.items() if k not in kwargs and k not in skipped}
    elif encoded:
        raise SettingError(
            f"{method} distorts the {', '.join(encoded)} input itself, but generate() passes on only its encoding",
            hint="pass the processor's tensors: custom_generate(strategy, tensors=inputs)",
        )
    found = [k for k, v in kwargs.items() if is_media(k, v) and only(k)]
    if not found:
        raise SettingError(
            f"{method} found no tensor of pixels or audio among {', '.join(sorted(kwargs)) or 'no inputs'}",
            hint="pass the processor's tensors: custom_generate(strategy, tensors=inputs)",
        )
    kwargs |= {k: change(k, kwargs[k], kwargs) for k in found}
    if times > 1 and encoded:
        kwargs = _expanded(context, kwargs, times)
    return second_stream(context, context.ids, kwargs)


def refuse_encoder_decoder(context: GenerationContext, what: str, why: str) -> None:
    """Raise UnsupportedError where the media are read by an encoder of their own."""
    if context.adapter.encoder is not None:
        raise UnsupportedError(
            f"{type(context.adapter.model).__name__} cannot be asked {what}: {why}",
            hint='use vcd() or aad(), which disturb the media, or m3id(without="zero")',
        )


def _disturbed_encoder(context: GenerationContext, change: Change, method: str) -> Stream:
    """The prompt with the states of an encoder that has read changed media."""
    adapter, encoder = context.adapter, context.adapter.encoder
    media = None if encoder is None else context.tensors.get(encoder.media)
    if encoder is None or not isinstance(media, Tensor):
        raise SettingError(
            f"{method} disturbs the media, but generate() has handed over the encoder's states only",
            hint="pass the processor's tensors: custom_generate(strategy, tensors=inputs)",
        )
    if len(context.ids) % len(media):
        raise SettingError(
            f"tensors= belong to another prompt: {len(media)} media for {len(context.ids)} rows",
            hint="pass the very inputs: generate(**inputs, custom_generate=custom_generate(strategy, tensors=inputs))",
        )
    given = {k: _placed(v, context) for k, v in context.tensors.items() if k in (encoder.media, "attention_mask")}
    given[encoder.media] = change(encoder.media, given[encoder.media], given)
    with adapter.exclusive():
        outputs = encoder.encoded(adapter.model, given)["encoder_outputs"]
    times = len(context.ids) // len(media)
    for name, value in outputs.items() if times > 1 else ():  # as generate() repeats them
        if isinstance(value, Tensor):
            outputs[name] = value.repeat_interleave(times, dim=0)
    return second_stream(context, context.ids, {**context.kwargs, "encoder_outputs": outputs})


def _placed(value: Any, context: GenerationContext) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(context.ids.device, context.adapter.model.dtype if value.is_floating_point() else value.dtype)


def _times(context: GenerationContext) -> int:
    """Return how often generate() repeated each prompt (num_return_sequences)."""
    ids = context.tensors.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 2 and context.ids.shape[0] % ids.shape[0] == 0:
        times = context.ids.shape[0] // ids.shape[0]
        if torch.equal(ids.to(context.ids.device).repeat_interleave(times, dim=0), context.ids):
            return times
    raise SettingError(
        f"tensors= belong to another prompt: expected input_ids {tuple(context.ids.shape)} as passed to generate()",
        hint="pass the same inputs: generate(**inputs, custom_generate=custom_generate(strategy, tensors=inputs))",
    )


def _expanded(context: GenerationContext, kwargs: dict[str, Any], times: int) -> dict[str, Any]:
    """Encode media once and repeat them, as generate() does: an image's patches have no batch dimension to repeat."""
    model, ids = context.adapter.model, context.tensors["input_ids"].to(context.ids.device)
    own = {k: v for k, v in kwargs.items() if k in context.kwargs}
    media = {k: v for k, v in kwargs.items() if k not in context.kwargs}
    return {**compat.encode_and_repeat(model, media, ids, times), **own}
