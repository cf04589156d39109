"""Second prompts: the same question with the media taken out, disturbed, or introduced by other words.

Every function answers with a :class:`Stream` of its own cache. Rows may be left-padded; positions are recomputed.
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
    """bool ``[B, T]``: the prompt's real perceptual positions."""
    return (context.modality_ids > 0) & context.mask


def without(context: GenerationContext, dropped: Tensor) -> Stream:
    """The prompt without the positions ``dropped`` (bool ``[B, T]``) and without any media.

    What is left closes ranks: rows are padded anew on the left, positions go on where the dropped ones began (M-RoPE: on
    every axis).

    Raises:
        PromptError: nothing is left of a row.
        UnsupportedError: an input whose axes nobody has declared.
    """
    context.require_prompt(words_only=True)
    refuse_encoder_decoder(context, "a prompt without its media", "an encoder-decoder always reads some")
    keep = context.mask & ~dropped
    if not bool(keep.any(-1).all()):
        raise PromptError("nothing is left of a prompt without its media", hint="put some words into the prompt")
    own = ("past_key_values", "attention_mask", compat.ENCODED_MEDIA, "inputs_embeds")
    words = MODEL.without_media({k: v for k, v in context.kwargs.items() if k not in own})
    words = MODEL.each(words, lambda axes, v, _: v * ~media_mask(context) if axes.new == "zero" else v)
    left = MODEL.drop({"input_ids": context.ids, "attention_mask": context.mask.long(), **words}, keep, context.mask)
    pad = compat.pad_token(context.config)
    ids = left.pop("input_ids").masked_fill(left["attention_mask"] == 0, 0 if pad is None else int(pad))
    return second_stream(context, ids, {"past_key_values": context.kwargs.get("past_key_values"), **left})


def inserted(context: GenerationContext, words: Sequence[int], at: Sequence[int]) -> Stream:
    """The prompt with the token ids ``words`` put in front of position ``at[row]`` of each row; media stay.

    Raises:
        UnsupportedError: a ready-made attention mask, which cannot be widened; an input whose axes nobody has declared.
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
    """``value`` [B, T, ...] with ``new`` [n, ...] in front of position ``at[row]``."""
    return torch.stack([torch.cat([row[:k], new, row[k:]]) for row, k in zip(value, at, strict=True)])


def disturbed(
    context: GenerationContext, change: Change, *, only: Callable[[str], bool] = lambda name: True, method: str
) -> Stream:
    """The prompt with its media changed: ``change(name, features, inputs)`` for each tensor of pixels or sound.

    transformers has run the image towers before a custom decoding method is called, so the processor's tensors must be
    at hand (``GenerationContext.tensors``) unless the model takes its media at the prefill; the towers then run on the changed media.

    Raises:
        SettingError: the media's tensors are not at hand, or belong to another prompt.
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
            f"{method} disturbs the {', '.join(encoded)} itself, but generate() has handed over its encoding only",
            hint="pass the processor's tensors: custom_generate(strategy, tensors=inputs)",
        )
    found = [k for k, v in kwargs.items() if is_media(k, v) and only(k)]
    if not found:
        raise SettingError(
            f"{method} found no tensor of pixels or sound among {', '.join(sorted(kwargs)) or 'no inputs'}",
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
    with torch.no_grad(), adapter.exclusive():
        outputs = adapter.model.get_encoder()(**given, return_dict=True)
    times = len(context.ids) // len(media)
    outputs["last_hidden_state"] = outputs["last_hidden_state"].repeat_interleave(times, dim=0)
    return second_stream(context, context.ids, {**context.kwargs, "encoder_outputs": outputs})


def _placed(value: Any, context: GenerationContext) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(context.ids.device, context.adapter.model.dtype if value.is_floating_point() else value.dtype)


def _times(context: GenerationContext) -> int:
    """How often generate() repeated each prompt (num_return_sequences)."""
    ids = context.tensors.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 2 and context.ids.shape[0] % ids.shape[0] == 0:
        times = context.ids.shape[0] // ids.shape[0]
        if torch.equal(ids.to(context.ids.device).repeat_interleave(times, dim=0), context.ids):
            return times
    raise SettingError(
        f"tensors= belong to another prompt: expected input_ids {tuple(context.ids.shape)} as given to generate()",
        hint="pass the very inputs: generate(**inputs, custom_generate=custom_generate(strategy, tensors=inputs))",
    )


def _expanded(context: GenerationContext, kwargs: dict[str, Any], times: int) -> dict[str, Any]:
    """Media encoded once and repeated, as generate() does: a picture's patches have no batch dimension to repeat."""
    model, ids = context.adapter.model, context.tensors["input_ids"].to(context.ids.device)
    own = {k: v for k, v in kwargs.items() if k in context.kwargs}
    media = {k: v for k, v in kwargs.items() if k not in context.kwargs}
    return {**compat.encoded_and_repeated(model, media, ids, times), **own}
