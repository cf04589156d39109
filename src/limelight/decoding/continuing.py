"""generate() calls whose cache already contains part of the prompt: a further turn, a shared prefix.

The model continues as in transformers' generate: it processes what is not in the cache. A method that needs the whole
prompt (relevance, a second prompt, the paper's LIME) recomputes it if ids and media are available, and raises an error
otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limelight import compat
from limelight.decoding.strategy import GenerationContext
from limelight.errors import PromptError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.inputs.decoder_inputs import MODEL
from limelight.types import MODALITIES


def past_of(kwargs: Mapping[str, Any], adapter: Adapter | None = None) -> int:
    """Positions in the cache that is given to generate().

    Raises:
        UnsupportedError: there are some, and the model is an encoder-decoder.
    """
    cache: Any = kwargs.get("past_key_values")
    past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    if past and adapter is not None and adapter.encoder is not None:
        raise UnsupportedError(
            "going on behind a filled cache is not covered for encoder-decoders",
            hint="give all of the prompt's ids, and no past_key_values",
        )
    return past


def is_partial(ids: Tensor, kwargs: Mapping[str, Any], config: Any, past: int) -> bool:
    """Return whether ``ids`` contain only the positions after the cache, decided by the attention mask's length as in
    transformers.

    Raises:
        PromptError: no new position, or cache, ids and mask do not match.
    """
    if not past:
        return False
    embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
    length = ids.shape[1] if embeds is None else embeds.shape[1]
    seen = mask.shape[1] if isinstance(mask, Tensor) else _dropped(config, length)
    held = next((x.shape[0] for x in map(_keys, _layers(kwargs["past_key_values"])) if x is not None), len(ids))
    if held != len(ids):
        raise PromptError(
            f"the cache has {held} rows, the prompt has {len(ids)}",
            hint="use the rows the cache was filled with; cache.batch_repeat_interleave(n) repeats them",
        )
    if seen != length and embeds is None:
        if seen != past + length:
            raise PromptError(
                f"the attention mask has {seen} positions for a cache of {past} and {length} new ids",
                hint="pass the ids of the whole conversation, or the new ids with a mask over the cache and them",
            )
        return True
    if past >= length:
        raise PromptError(
            f"the cache has {past} positions and the prompt has {length}: there are no new positions",
            hint="pass the ids of the whole conversation, which must extend beyond the cache (or crop the cache); "
            "new ids alone need an attention_mask over the cache and them",
        )
    return False


def _dropped(config: Any, length: int) -> int:
    """Return the length of an all-ones attention mask, which generate() drops."""
    dropped = compat.mask_length(config)
    return length if dropped is None else dropped


def _layers(cache: Any) -> Any:
    return getattr(getattr(cache, "self_attention_cache", cache), "layers", ())


def _keys(layer: Any) -> Tensor | None:
    keys = getattr(layer, "keys", None)
    return keys if isinstance(keys, Tensor) and keys.ndim == 4 and keys.numel() else None


def continued(context: GenerationContext, *, partial: bool) -> GenerationContext:
    """Return the context with the fields for a filled cache set: ``past``, ``resume``, ``partial`` and ``unseen``.

    Raises:
        PromptError: the prompt has media after the cache that were not given.
    """
    past = past_of(context.kwargs)
    if not past:
        return context
    if partial:
        return replace(context, past=past, resume=context.kwargs, partial=True, unseen="its first ids were not given")
    resume = dict(context.kwargs)
    behind = context.modality_ids[:, past:]
    if not bool((behind > 0).any()):  # all media are in the cache: the model would search for their placeholders
        resume = {k: v for k, v in compat.without_encoded_media(resume).items() if not is_media(k, v)}
    elif not _media_in(context.kwargs):
        names = ", ".join(sorted({MODALITIES[k] for k in set(behind.flatten().tolist()) if k > 0}))
        raise PromptError(
            f"the prompt contains {names} after the cache that was not given",
            hint="pass the media after the cache to generate() as well",
        )
    kwargs, unseen = _full_inputs(context)
    return replace(context, past=past, resume=resume, kwargs=kwargs, unseen=unseen)


def is_media(name: str, value: Any) -> bool:
    """Return whether the argument is a tensor of pixels or audio features.

    Raises:
        UnsupportedError: a tensor whose axes are not declared.
    """
    if not isinstance(value, Tensor):
        return False
    axes = MODEL.axes(name, value)
    return axes.media and axes.features and value.is_floating_point()


def _media_in(kwargs: Mapping[str, Any]) -> bool:
    encoded = compat.encoded_media(kwargs)
    return any(v is not None for v in encoded.values()) or any(is_media(k, v) for k, v in kwargs.items())


def _full_inputs(context: GenerationContext) -> tuple[dict[str, Any], str | None]:
    """Return the model's inputs for the whole prompt, and the reason if they are incomplete."""
    kwargs = dict(context.kwargs)
    given = context.tensors.get("input_ids")
    bound = (
        isinstance(given, Tensor)
        and given.shape == context.ids.shape
        and bool((given.to(context.ids.device) == context.ids).all())
    )
    more = {
        k: v.to(context.ids.device) for k, v in context.tensors.items()
        if isinstance(v, Tensor) and k not in ("input_ids", "attention_mask", "position_ids", "modality_ids")
    } if bound else {}  # fmt: skip
    if not bool((context.modality_ids > 0).any()):
        return kwargs, None
    if not _media_in(kwargs):
        if not _media_in(more):
            return kwargs, "its media were not given"
        kwargs = compat.without_encoded_media(kwargs)
        kwargs |= {k: v for k, v in more.items() if kwargs.get(k) is None}
    positions = kwargs.get("position_ids")
    if not isinstance(positions, Tensor) or positions.ndim < 3:
        return kwargs, None
    # multi-axis positions: generate() has computed only those after the cache
    known = {**more, **{k: v for k, v in kwargs.items() if v is not None and k != "past_key_values"}}
    if not any("grid" in k for k in known):
        return kwargs, "the grids of its media were not given (pass custom_generate(tensors=inputs))"
    kwargs["position_ids"] = recounted(context.adapter, context.ids, context.mask, known)
    return kwargs, None


def recounted(adapter: Adapter, ids: Tensor, mask: Tensor, known: Mapping[str, Any]) -> Tensor:
    """Recompute the position ids of the whole prompt, as generate() does without a cache."""
    model = adapter.model
    left = ("position_ids", "attention_mask", "inputs_embeds", "input_ids")
    inputs = {k: v for k, v in adapter.complete({**known, "input_ids": ids}).items() if k not in left}
    with _deltas_kept(model), torch.no_grad():
        return compat.position_ids(model, ids, {**inputs, "attention_mask": mask.long()})


@contextmanager
def _deltas_kept(model: Any) -> Iterator[None]:
    """Restore the models' ``rope_deltas`` afterwards, since computing positions overwrites those of other conversations."""
    before = [(m, m.rope_deltas) for m in model.modules() if hasattr(m, "rope_deltas")]
    try:
        yield
    finally:
        for module, value in before:
            module.rope_deltas = value
