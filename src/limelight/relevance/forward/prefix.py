"""Re-use of prompts' beginnings: several questions about one picture share the prefill of what stands in front of them.

Keys and values of a position depend on the positions in front of it alone, and so do their tangents. A
:class:`PrefixCache` keeps those of the last prompts; a stream copies what its prompt has in common with one of them and runs
the rest. What is compared are the merged input embeddings themselves, so that the same picture (and nothing else) is found
again whatever it was called, and the weights of the channels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from limelight import compat
from limelight.errors import SettingError
from limelight.relevance.attachment import structure

if TYPE_CHECKING:
    from limelight.relevance.forward.stream import DualStream

SHORTEST = 16  # positions worth copying


@dataclass(frozen=True)
class _Prompt:
    """A prompt that was run. Shapes: embeddings ``[T, D]``, weights ``[C, T]``, positions ``[..., T]`` (None: not taken);
    layer -> keys and values ``[1 + C, Hkv, T, d]``."""

    decoder: Any
    key: tuple[Any, ...]
    embeds: Tensor
    weights: Tensor
    positions: Tensor | None
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    def shared(self, embeds: Tensor, weights: Tensor, positions: Tensor | None) -> int:
        """Return how many positions at the beginning are the same."""
        length = min(len(self.embeds), len(embeds))
        same = (self.embeds[:length] == embeds[:length]).all(-1) & (
            self.weights[:, :length] == weights[:, :length]
        ).all(0)
        if self.positions is not None and positions is not None:
            same &= (self.positions[..., :length] == positions[..., :length]).reshape(-1, length).all(0)
        return int(same.long().cumprod(0).sum())


class PrefixCache:
    """Prefills that later prompts continue: ``adapter.prefix_cache = limelight.PrefixCache()``.

    For the methods with tangents (meter, relevance-contrastive, cached LIME), prompts of one row, and decoders whose layers
    all attend to everything in front of them; others run as without it. Logits and relevance equal those of a whole prefill
    up to rounding.

    Args:
        entries: prompts that are kept, the most recently used ones; each takes the memory of its keys and values,
            ``1 + channels`` times those of plain decoding.

    Attributes:
        hits, misses: prompts that found a beginning, and that could have had one. ``reused``: positions in all hits.

    Raises:
        SettingError: fewer than one entry.
    """

    def __init__(self, entries: int = 4) -> None:
        if entries < 1:
            raise SettingError(
                f"expected at least one entry, got {entries}", hint="adapter.prefix_cache = None turns it off"
            )
        self.entries = entries
        self.hits = self.misses = self.reused = 0
        self._prompts: OrderedDict[int, _Prompt] = OrderedDict()
        self._number = count()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget all prompts, and free their memory."""
        with self._lock:
            self._prompts.clear()

    def bytes(self) -> int:
        """Return the memory of the keys and values."""
        with self._lock:
            stored = [t for p in self._prompts.values() for t in (*p.keys.values(), *p.values.values())]
        return sum(t.numel() * t.element_size() for t in stored)

    def fill(self, stream: DualStream) -> int:
        """Copy the longest known beginning of the stream's prompt into its empty cache and return its length; 0: none."""
        if not _reusable(stream):
            return 0
        embeds, weights, positions = _compared(stream)
        key = _key(stream)
        with self._lock:
            known = [
                (p.shared(embeds, weights, positions), n)
                for n, p in self._prompts.items()
                if p.decoder() is stream.adapter.decoder and p.key == key
            ]
            length, number = max(known, default=(0, -1))
            length = min(length, len(embeds) - 1)  # the last position's logits are needed
            if length < SHORTEST:
                self.misses += 1
                return 0
            self.hits += 1
            self.reused += length
            self._prompts.move_to_end(number)
            prompt = self._prompts[number]
        for layer, keys in prompt.keys.items():
            stream.cache.write(layer, keys[:, :, :length], prompt.values[layer][:, :, :length])
        stream.cache.advance(length)
        return length

    def keep(self, stream: DualStream) -> None:
        """Keep a stream's prompt, which has just been run; a known prompt that it continues is replaced."""
        if not _reusable(stream):
            return
        embeds, weights, positions = _compared(stream)
        cache, key = stream.cache, _key(stream)
        keys, values = (
            {layer: x[:, :, : cache.length].clone() for layer, x in store.items()}
            for store in (cache.keys, cache.values)
        )
        decoder = ref(stream.adapter.decoder)
        prompt = _Prompt(decoder, key, embeds.clone(), weights.clone(), positions, keys, values)
        with self._lock:
            for number, other in list(self._prompts.items()):
                gone = other.decoder() is None
                same = other.decoder() is decoder() and other.key == key
                if gone or (same and other.shared(embeds, weights, positions) == len(other.embeds)):
                    del self._prompts[number]
            self._prompts[next(self._number)] = prompt
            while len(self._prompts) > self.entries:
                self._prompts.popitem(last=False)


def _reusable(stream: DualStream) -> bool:
    """Whether a position's keys and values depend on those in front of it alone, and nothing else is kept."""
    call = stream.call
    mask = call.kwargs.get("attention_mask")
    causal = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)  # ready ones may look ahead
    return bool(
        causal
        and stream.batch == 1
        and stream.full_attention
        and stream.simple_mask
        and call.features is None
        and not stream.cache.states
    )


def _compared(stream: DualStream) -> tuple[Tensor, Tensor, Tensor | None]:
    call = stream.call
    weights: Sequence[Tensor] = [c.prompt[0] for c in stream.channels]
    stacked = torch.stack(tuple(weights)) if weights else call.embeds.new_zeros(0, call.length)
    return call.embeds[0], stacked, call.kwargs.get("position_ids")


def _key(stream: DualStream) -> tuple[Any, ...]:
    weights = stream.rules.table.parameters()
    written = tuple(
        0 if p.is_inference() else compat.version_of(p) for p in weights
    )  # in place, which has no new identity
    return (structure(stream.adapter), written, stream.rules.composite.name, len(stream.channels))
