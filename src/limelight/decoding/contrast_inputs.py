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
from limelight.models.runtime.cached_decoder import Stream

Change = Callable[[str, Tensor, Mapping[str, Any]], Tensor]


def media_mask(context: GenerationContext) -> Tensor:
    """bool ``[B, T]``: the prompt's real perceptual positions."""
    return (context.modality_ids > 0) & context.mask


def without(context: GenerationContext, dropped: Tensor) -> Stream:
    """The prompt without the positions ``dropped`` (bool ``[B, T]``) and without any media.

    What is left closes ranks: rows are padded anew on the left, text positions count from 0 (M-RoPE: on every axis).

    Raises:
        PromptError: nothing is left of a row.
    """
    context.require_prompt(words_only=True)
    keep = context.mask & ~dropped
    length = int(keep.sum(-1).max())
    if not bool(keep.any(-1).all()):
        raise PromptError("nothing is left of a prompt without its media", hint="put some words into the prompt")
    mask = torch.stack([torch.arange(length, device=keep.device) >= length - n for n in keep.sum(-1).tolist()])

    def closed(value: Tensor, fill: int) -> Tensor:
        out = value.new_full(mask.shape, fill)
        out[mask] = value[keep]
        return out

    pad = compat.pad_token(context.config)
    kwargs: dict[str, Any] = {"past_key_values": context.kwargs.get("past_key_values")}
    for name, value in context.kwargs.items():
        if value is None or isinstance(value, (bool, int, float, str)):
            kwargs[name] = value
        elif name == "position_ids":
            kwargs[name] = (mask.long().cumsum(-1) - 1).clamp_min(0).expand(*value.shape[:-2], *mask.shape)
        elif _is_typed(name, value, context):
            kwargs[name] = closed(value * ~media_mask(context), 0)
    kwargs["attention_mask"] = mask.long()
    return second_stream(context, closed(context.ids, 0 if pad is None else int(pad)), kwargs)


def inserted(context: GenerationContext, words: Sequence[int], at: Sequence[int]) -> Stream:
    """The prompt with the token ids ``words`` put in front of position ``at[row]`` of each row; media stay.

    Raises:
        UnsupportedError: a ready-made attention mask, which cannot be widened.
    """
    context.require_prompt()
    rows, length, n = *context.ids.shape, len(words)
    new = torch.as_tensor(words, dtype=context.ids.dtype, device=context.ids.device)

    def widened(value: Tensor, pieces: Sequence[Tensor]) -> Tensor:
        """``value [B, T, ...]`` with ``pieces[row] [n, ...]`` in its gap."""
        whole = [torch.cat([value[r, :k], pieces[r], value[r, k:]]) for r, k in enumerate(at)]
        return torch.stack(whole)

    def shifted(value: Tensor) -> Tensor:
        steps = torch.arange(n, device=value.device)
        whole = [
            torch.cat([value[..., r, :k], value[..., r, k : k + 1] + steps, value[..., r, k:] + n], dim=-1)
            for r, k in enumerate(at)
        ]
        return torch.stack(whole, dim=-2)

    kwargs: dict[str, Any] = {}
    for name, value in context.kwargs.items():
        kwargs[name] = value
        if not isinstance(value, Tensor):
            continue
        if name == "position_ids":
            kwargs[name] = shifted(value)
        elif _is_typed(name, value, context):
            fill = value.new_full((n,), int(name == "attention_mask"))
            kwargs[name] = widened(value, [fill] * rows)
        elif name == "attention_mask":
            raise UnsupportedError(
                f"words cannot be put into a prompt with a ready-made attention mask {tuple(value.shape)}",
                hint="pass the two-dimensional mask of the tokenizer",
            )
        elif "attention_mask" in name and value.ndim > 2 and value.shape[:2] == (rows, length):
            before = [value[r, max(k - 1, 0)].expand(n, *value.shape[2:]) for r, k in enumerate(at)]
            kwargs[name] = widened(value, before)
    return second_stream(context, widened(context.ids, [new] * rows), kwargs)


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


def _is_typed(name: str, value: Any, context: GenerationContext) -> bool:
    """One entry a prompt position: told by name too, since a spectrogram's mask may have the same shape by chance."""
    named = name == "attention_mask" or "token_type" in name
    return named and isinstance(value, Tensor) and value.shape == context.ids.shape


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
