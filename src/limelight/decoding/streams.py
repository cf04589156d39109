"""Cached streams of one generation: the model's own on generate()'s cache, and those of second prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, QuantizedCache, StaticCache

from limelight import compat
from limelight.decoding.beams import reorder_streams
from limelight.decoding.strategy import GenerationContext
from limelight.errors import UnsupportedError
from limelight.models.runtime.cached_decoder import Stream


def main_stream(context: GenerationContext) -> Stream:
    """Return the model's stream on generate()'s cache, continuing after its current content."""
    return Stream(
        context.adapter, context.ids, context.kwargs if context.resume is None else context.resume, context.config
    )


def second_stream(
    context: GenerationContext,
    ids: Tensor | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    tokens: int = 0,
) -> Stream:
    """Return a stream on an empty cache of the requested type, of the prompt or of ``ids`` with inputs ``kwargs``.

    ``tokens``: how many tokens it may take, where these can be more than the answer's.

    Raises:
        UnsupportedError: part of the prompt is only in the given cache.
    """
    if kwargs is None:
        context.require_prompt()
        kwargs = context.kwargs
    ids = context.ids if ids is None else ids
    own = {k: v for k, v in kwargs.items() if k != "past_key_values"}
    return Stream(context.adapter, ids, {**own, **_empty(context, ids, kwargs, tokens)})


def _empty(context: GenerationContext, ids: Tensor, kwargs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    prepared: Any = context.kwargs.get("past_key_values")
    model, config = context.adapter.model, context.config
    if getattr(config, "cache_implementation", None) not in (None, "dynamic"):
        times = max(config.num_beams or 1, config.num_return_sequences or 1)
        longest = config.max_length + max(0, ids.shape[1] - context.ids.shape[1])  # opera looks one token ahead
        longest = max(longest, ids.shape[1] + tokens)
        states = kwargs.get("encoder_outputs")
        return compat.empty_cache(model, config, len(ids) // times, longest, states)
    if type(prepared) in (DynamicCache, StaticCache, QuantizedCache):  # not every model creates its cache itself
        return {"past_key_values": DynamicCache(config=model.config.get_text_config(decoder=True))}
    return {}


class StreamSession:
    """Base of sessions that decode on generate()'s stream, and on the streams of ``others`` beside it (None: left out)."""

    def __init__(self, context: GenerationContext, *others: Stream | None) -> None:
        self.context, self.main, self.others = context, main_stream(context), others

    def cache(self) -> Any:
        return self.main.cache

    def reorder(self, rows: Tensor) -> None:
        """Continue row ``i`` from row ``rows[i]`` of the same prompt (beam search)."""
        reorder_streams(rows, self.main, *self.others)


def checked_stream(context: GenerationContext) -> Stream:
    """Return the prefilled stream behind a filled cache, for a method that recomputes the whole prompt; both must agree.

    They disagree where the cache does not match ids and media (another conversation, quantised keys), or where the
    family's attention over the prompt changes with its length (bidirectional attention: PaliGemma).

    Raises:
        UnsupportedError: the two differ.
    """
    stream = main_stream(context)
    cached, recomputed = stream.next(None), second_stream(context).next(None)
    wide = context.adapter.model.dtype in (torch.float32, torch.float64)
    known = torch.isfinite(cached) & torch.isfinite(recomputed)
    relative = float((cached - recomputed)[known].abs().max()) / max(1.0, float(recomputed[known].abs().max()))
    if relative > (1e-3 if wide else 5e-2):
        raise UnsupportedError(
            f"the logits from the cache and from recomputing the whole prompt differ (by {relative:.1g} of the largest "
            "logit), and this method would use the latter",
            hint="leave past_key_values out, or use a strategy that continues from the cache (`limelight strategies` lists them)",
        )
    return stream


def cache_after(context: GenerationContext, ids: Tensor, stream: Stream | None = None) -> Any:
    """Return generate()'s cache filled with all of ``ids`` [B, T + n] except the last, as plain decoding leaves it.

    For methods without such a cache: one prefill (unless ``stream`` is prefilled), and one forward for the answer.
    """
    if getattr(context.config, "use_cache", None) is False:
        return None
    generated = ids[:, context.ids.shape[1] : -1]
    if stream is None:
        stream = main_stream(context)
        stream.next(None)
    if generated.shape[1]:
        stream.extend(generated)
    return stream.cache
