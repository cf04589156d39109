"""The dual cache: written in place, read without a copy, grown, rewound."""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.relevance.forward.cache import DualCache, PassingCache

ROWS, HEADS, D, WIDTH = 6, 2, 3, 5


def new(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(ROWS, HEADS, count, d, generator=generator) for d in (D, WIDTH))  # type: ignore[return-value]


def test_positions_come_back_in_order_and_grow() -> None:
    cache = DualCache(4)
    parts = [new(seed, count) for seed, count in enumerate((3, 1, 1, 7, 1))]
    for key, value in parts:
        for layer in (0, 5):
            cache.write(layer, key, value)
        cache.advance(key.shape[2])
    for layer in (0, 5):
        keys, values = cache.read(layer) or parts[0]
        assert torch.equal(keys, torch.cat([k for k, _ in parts], dim=2))
        assert torch.equal(values, torch.cat([v for _, v in parts], dim=2))
    assert cache.length == cache.get_seq_length() == cache.get_query_offset(3) == 13
    assert cache.get_mask_sizes(2) == (15, 0)
    assert cache.keys[0].shape[2] == cache.capacity >= 13
    assert cache.bytes() == 2 * 4 * ROWS * HEADS * cache.capacity * (D + WIDTH)


def test_reading_copies_nothing_and_writing_waits_for_advance() -> None:
    cache = DualCache(8)
    key, value = new(0, 2)
    cache.write(0, key, value)
    assert cache.read(0) is None and cache.read(1) is None
    ahead = cache.read(0, extra=2)
    assert ahead is not None and torch.equal(ahead[0], key)
    cache.advance(2)
    here = cache.read(0)
    assert here is not None and here[0].data_ptr() == cache.keys[0].data_ptr()


def test_rewound_positions_are_overwritten() -> None:
    cache = DualCache(8)
    for seed in (0, 1):
        cache.write(0, *new(seed, 2))
        cache.advance(2)
    cache.rewind()
    cache.write(0, *new(2, 1))
    cache.advance(1)
    keys, _ = cache.read(0) or new(0, 1)
    assert torch.equal(keys, torch.cat([new(0, 2)[0], new(1, 2)[0][:, :, :1], new(2, 1)[0]], dim=2))


def test_update_hands_back_what_is_new_and_keeps_no_graph() -> None:
    cache = DualCache(2)
    key, value = new(0, 1)
    key.requires_grad_(True)
    back = cache.update(key, value, 0, {})
    assert back[0] is key and back[1] is value and not cache.keys
    cache.write(0, key, value)
    assert not cache.keys[0].requires_grad


def test_a_passing_cache_holds_the_layer_at_work_alone() -> None:
    cache = PassingCache(8)
    for layer in range(3):
        key, value = torch.randn(2, 2, 5, 4), torch.randn(2, 5, 2, 3).transpose(1, 2)
        cache.write(layer, key, value)
        read = cache.read(layer, extra=5)
        assert read is not None and torch.equal(read[0], key) and torch.equal(read[1], value)
        assert read[1].is_contiguous()
        assert cache.bytes() == 2 * 2 * 5 * 7 * 4 and cache.length == 0
    cache.keep(0, {5: (torch.zeros(1),)})
    assert cache.states == {}
