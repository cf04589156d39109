"""Beams of one prompt on one cache: copying, selecting and reordering rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.runtime.cached_decoder import Stream


def fork(stream: Stream, rows: Sequence[int]) -> Stream:
    """Return a stream with its own cache whose row ``i`` continues row ``rows[i]`` of the prefilled ``stream``.

    Raises:
        UnsupportedError: see :func:`choose`.
    """
    kwargs = dict(stream.kwargs)
    kwargs["past_key_values"] = copy.deepcopy(kwargs["past_key_values"])
    out = Stream(stream.adapter, stream.ids, kwargs)
    choose(out, rows)
    return out


def choose(stream: Stream, rows: Sequence[int]) -> None:
    """Select ``rows`` of the stream in place, in this order and with repetitions.

    Media inputs are unchanged: the prefill has already processed them.

    Raises:
        UnsupportedError: the cache cannot be reordered, or an input's axes are not declared.
    """
    index = torch.as_tensor(list(rows), dtype=torch.long, device=stream.ids.device)
    cache: Any = stream.kwargs["past_key_values"]
    if not hasattr(cache, "reorder_cache"):
        raise UnsupportedError(
            f"a cache of type {type(cache).__name__} cannot be reordered for beams", hint="use the default cache"
        )
    kwargs = stream.adapter.arguments.reorder(stream.kwargs, index)
    cache.reorder_cache(index)
    stream.ids, stream.kwargs = stream.ids[index], kwargs


def reorder_streams(rows: Tensor, *streams: Stream | None) -> None:
    """Select ``rows`` [B] of every stream, in place; see :func:`choose`."""
    for stream in streams:
        if stream is not None:
            choose(stream, rows.tolist())
