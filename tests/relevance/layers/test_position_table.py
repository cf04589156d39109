"""Learned positions beside the layers are a bias: they enter block 0 alone."""

from __future__ import annotations

import torch
from torch import nn

from limelight.relevance.layers import position_table
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import CHANNELS, B, D, T, ruled


def test_learned_positions_enter_the_model_alone() -> None:
    table = nn.Embedding(9, D, dtype=torch.float64)
    for ids in (torch.arange(T)[None], torch.arange(T).repeat(CHANNELS * B, 1)):
        out = ruled(table, "position_table", Mode(batch=B, channels=CHANNELS))(ids)
        assert out.shape == (CHANNELS * B, T, D)
        assert torch.equal(out[:B], table(torch.arange(T)).expand(B, T, D))
        assert not out[B:].any()
    alone = ruled(table, "position_table", Mode(batch=B))(torch.arange(T)[None])
    assert torch.equal(alone, table(torch.arange(T))[None])


def test_a_table_inside_a_layer_is_none() -> None:
    assert list(position_table.recognise("embed_positions", nn.Embedding(9, D)))
    assert not list(position_table.recognise("layers.0.bias", nn.Embedding(9, D)))
