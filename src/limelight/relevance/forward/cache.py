"""A KV cache of values and tangents, in buffers that are written in place and read without copying."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import EncoderDecoderCache

from limelight.errors import UnsupportedError


class DualCache:
    """Keys and values of ``rows = (1 + C) * B`` batch rows: ``[rows, Hkv, capacity, d]`` per layer.

    Row block 0 is the model's own cache, block ``c`` the tangents of channel ``c``. It implements the cache interface used
    by transformers' decoders; :meth:`update` returns the new keys unchanged, since the dual attention reads the prefix in
    place and :meth:`write` stores a position once, when its token is final. Recurrent layers store their states here
    (:meth:`keep`), values and tangents in the same rows.
    """

    is_compileable = False
    is_sliding: list[bool] = []  # noqa: RUF012 - read by transformers: no sliding-window layers
    is_linear: list[bool] = []  # noqa: RUF012
    is_dummy: list[bool] = []  # noqa: RUF012

    def __init__(self, capacity: int, reading: Collection[int] = (), *, paired: bool = False) -> None:
        """``reading``: layers that attend to states beside the prompt, whose keys and values are there once and stay.
        ``paired``: the decoder wants two caches, one for self-attention and one for those."""
        self.reading = frozenset(reading)
        self.handed: Any = PairedCache(self) if paired else self  # what the decoder is given
        self.cross_attention = StatesCache()
        self.capacity = max(capacity, 1)
        self.length = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.states: dict[int, dict[int, tuple[Tensor, ...]]] = {}
        self.slot: Tensor | None = None
        self.window = 0

    @contextmanager
    def static(self, slot: Tensor, window: int) -> Iterator[None]:
        """Use fixed shapes inside the block, as a captured CUDA graph requires: a new position is written at index
        ``slot`` (int64 ``[1]``, on the device), and the first ``window`` positions are always read."""
        self.slot, self.window = slot, window
        try:
            yield
        finally:
            self.slot, self.window = None, 0

    def enlarge(self, capacity: int) -> None:
        """Ensure room for ``capacity`` positions in every layer."""
        self.capacity = max(self.capacity, capacity)
        for store in (self.keys, self.values):
            for layer, buffer in store.items():
                if buffer.shape[2] < capacity:
                    larger = buffer.new_zeros((*buffer.shape[:2], capacity, buffer.shape[3]))
                    larger[:, :, : self.length] = buffer[:, :, : self.length]
                    store[layer] = larger

    def clear_behind(self) -> None:
        """Zero the buffers beyond the current length: masked positions must still be finite."""
        for store in (self.keys, self.values):
            for buffer in store.values():
                buffer[:, :, self.length :] = 0

    @property
    def layers(self) -> Any:
        """The cross-attention layers' states; other decoders that access cache layers are not supported.

        Raises:
            UnsupportedError: there are no cross-attention layers.
        """
        if self.reading:
            empty = SimpleNamespace(is_initialized=False)
            return [self.cross_attention.layers.get(n, empty) for n in range(max(self.reading) + 1)]
        raise UnsupportedError(
            "the decoder accesses the layers of its own cache type, which the dual cache does not support",
            hint="use exact mode (lime(), attribute()), which needs no cache",
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self, layer_idx: int = 0) -> int:
        return -1

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer_idx in self.reading:
            self.cross_attention.update(key, value, layer_idx)
        return key, value

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store ``[rows, Hkv, N, d]`` after the current length (which :meth:`advance` increases)."""
        if self.slot is not None:
            self.keys[layer].index_copy_(2, self.slot, key.detach())
            self.values[layer].index_copy_(2, self.slot, value.detach())
            return
        stop = self.length + key.shape[2]
        for store, new in ((self.keys, key), (self.values, value)):
            buffer = store.get(layer)
            if buffer is None or stop > buffer.shape[2]:
                self.capacity = max(self.capacity, stop, 2 * (buffer.shape[2] if buffer is not None else 0))
                larger = new.new_empty((*new.shape[:2], self.capacity, new.shape[3]))
                if buffer is not None:
                    larger[:, :, : self.length] = buffer[:, :, : self.length]
                store[layer] = buffer = larger
            buffer[:, :, self.length : stop] = new.detach()

    def keep(self, layer: int, states: Mapping[int, tuple[Tensor, ...]]) -> None:
        """Store a recurrent layer's states by number of positions; only the two latest are kept."""
        known = {**self.states.get(layer, {}), **{n: tuple(t.detach() for t in s) for n, s in states.items()}}
        self.states[layer] = {n: known[n] for n in sorted(known)[-2:]}

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        """Return a recurrent layer's state at the current length; None at the start.

        Raises:
            UnsupportedError: the cache was rewound by more than one position.
        """
        if self.length == 0:
            return None
        known = self.states.get(layer, {})
        if self.length not in known:
            raise UnsupportedError(
                f"layer {layer} is recurrent and has stored its state after {sorted(known)} positions, not {self.length}",
                hint="rewind one position at most, or prefill again",
            )
        return known[self.length]

    def reorder(self, rows: Tensor) -> None:
        """Select ``rows`` of everything stored, in place."""
        for store in (self.keys, self.values):
            for buffer in store.values():
                held = buffer[:, :, : self.length]
                held.copy_(held[rows.to(held.device)])
        for known in self.states.values():
            for count, states in known.items():
                known[count] = tuple(s[rows.to(s.device)] for s in states)

    def advance(self, count: int) -> None:
        self.length += count

    def rewind(self, count: int = 1) -> None:
        """Drop the last positions (their buffers are overwritten later)."""
        self.length -= count

    def read(self, layer: int, extra: int = 0) -> tuple[Tensor, Tensor] | None:
        """Return views ``[rows, Hkv, length + extra, d]`` of one layer, or None if nothing is stored."""
        stop = self.window if self.slot is not None else self.length + extra
        if stop == 0 or layer not in self.keys:
            return None
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]

    def bytes(self) -> int:
        states = (t for layer in self.states.values() for state in layer.values() for t in state)
        return sum(t.numel() * t.element_size() for t in (*self.keys.values(), *self.values.values(), *states))


class PassingCache(DualCache):
    """For one forward of a whole sequence that nothing follows: the keys and values of the layer at work, and no more."""

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        # contiguous: a product over rows and heads would otherwise copy them for every block of queries
        self.keys, self.values = {layer: key.detach().contiguous()}, {layer: value.detach().contiguous()}

    def keep(self, layer: int, states: Mapping[int, tuple[Tensor, ...]]) -> None:
        """Nothing: no position follows."""


class StatesCache:
    """Keys and values of an encoder's states, computed once: what an :class:`EncoderDecoderCache` asks its second cache."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: dict[int, SimpleNamespace] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.layers[layer_idx] = SimpleNamespace(is_initialized=True, keys=key.detach(), values=value.detach())
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        known = self.layers.get(layer_idx)
        return 0 if known is None else int(known.keys.shape[2])


class PairedCache(EncoderDecoderCache):  # type: ignore[misc]
    """A dual cache as encoder-decoders take it."""

    def __init__(self, own: DualCache) -> None:
        self.self_attention_cache, self.cross_attention_cache = own, StatesCache()
        self.is_updated: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self.is_updated)

    def __bool__(self) -> bool:
        return True

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return int(self.self_attention_cache.get_query_offset(layer_idx))
