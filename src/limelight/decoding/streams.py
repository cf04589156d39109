"""The cached streams of one generation: the model's own, on the cache that generate() prepared, and those of second prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, QuantizedCache, StaticCache

from limelight import compat
from limelight.decoding.strategy import GenerationContext
from limelight.errors import UnsupportedError
from limelight.models.runtime.cached_decoder import Stream


def main_stream(context: GenerationContext) -> Stream:
    """The model itself on generate()'s cache, behind what it holds already."""
    return Stream(
        context.adapter, context.ids, context.kwargs if context.resume is None else context.resume, context.config
    )


def second_stream(
    context: GenerationContext, ids: Tensor | None = None, kwargs: Mapping[str, Any] | None = None
) -> Stream:
    """A stream on an empty cache of the kind that was asked for: of the prompt, or of ``ids`` with inputs ``kwargs``.

    Raises:
        UnsupportedError: part of the prompt is in the given cache alone.
    """
    if kwargs is None:
        context.require_prompt()
        kwargs = context.kwargs
    ids = context.ids if ids is None else ids
    own = {k: v for k, v in kwargs.items() if k != "past_key_values"}
    return Stream(context.adapter, ids, {**own, **_empty(context, ids)})


def _empty(context: GenerationContext, ids: Tensor) -> dict[str, Any]:
    prepared: Any = context.kwargs.get("past_key_values")
    model, config = context.adapter.model, context.config
    if getattr(config, "cache_implementation", None) not in (None, "dynamic"):
        times = max(config.num_beams or 1, config.num_return_sequences or 1)
        longest = config.max_length + max(0, ids.shape[1] - context.ids.shape[1])  # opera looks one token ahead
        return compat.empty_cache(model, config, len(ids) // times, longest)
    if type(prepared) in (DynamicCache, StaticCache, QuantizedCache):  # not every model makes its cache itself
        return {"past_key_values": DynamicCache(config=model.config.get_text_config(decoder=True))}
    return {}


def checked_stream(context: GenerationContext) -> Stream:
    """The model behind a filled cache, prefilled, for a method that reads the whole prompt anew: both must say the same.

    They do not where the cache holds something else than ids and media say (another conversation, quantised keys), or
    where the family reads a prompt otherwise once it is longer (both ways: PaliGemma).

    Raises:
        UnsupportedError: the two differ.
    """
    stream = main_stream(context)
    went_on, anew = stream.next(None), second_stream(context).next(None)
    wide = context.adapter.model.dtype in (torch.float32, torch.float64)
    known = torch.isfinite(went_on) & torch.isfinite(anew)
    apart = float((went_on - anew)[known].abs().max()) / max(1.0, float(anew[known].abs().max()))
    if apart > (1e-3 if wide else 5e-2):
        raise UnsupportedError(
            f"the model behind the cache and the whole prompt read anew differ (by {apart:.1g} of the largest logit), "
            "and this method would answer for the latter",
            hint="leave past_key_values out, or use a strategy that goes on from the cache (`limelight strategies` lists them)",
        )
    return stream


def cache_after(context: GenerationContext, ids: Tensor, stream: Stream | None = None) -> Any:
    """generate()'s cache with all of ``ids`` [B, T + n] but the last, as plain decoding leaves it.

    For methods that keep no such cache: one prefill (unless ``stream`` has done it), and one forward for the answer.
    """
    if getattr(context.config, "use_cache", None) is False:
        return None
    said = ids[:, context.ids.shape[1] : -1]
    if stream is None:
        stream = main_stream(context)
        stream.next(None)
    if said.shape[1]:
        stream.extend(said)
    return stream.cache
