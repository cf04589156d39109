"""The list of a model's modules is the model's own at every moment, and nobody at rest holds it."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import configs_of
from limelight.models.runtime.module_table import ModuleTable
from limelight.models.runtime.wrappers import modules_of
from tests.tiny import llava


def exchange(decoder: Any) -> None:
    decoder.layers[0].mlp = copy.deepcopy(decoder.layers[0].mlp)


def add(decoder: Any) -> None:
    decoder.layers[1].mlp.extra = nn.Identity()


def take_out(decoder: Any) -> None:
    decoder.layers[1].mlp.act_fn = None


def swap_two(decoder: Any) -> None:
    decoder.layers[0].mlp, decoder.layers[1].mlp = decoder.layers[1].mlp, decoder.layers[0].mlp


def wrap_inner(decoder: Any) -> None:
    decoder.layers[0].mlp.up_proj = nn.Sequential(decoder.layers[0].mlp.up_proj)


def other_weight(decoder: Any) -> None:
    decoder.norm.weight = nn.Parameter(decoder.norm.weight.detach().clone())


CHANGES: list[Callable[[Any], None]] = [exchange, add, take_out, swap_two, wrap_inner, other_weight]


def same_as_new(table: ModuleTable, model: Any) -> bool:
    new = ModuleTable(model, model.get_decoder(), model.lm_head)
    return table.identity == new.identity and table.ids == new.ids and table.everything == new.everything


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_exchanged_is_noticed_once(change: Callable[[Any], None]) -> None:
    model = llava(torch.float32)
    adapter = Adapter(model)
    table = adapter.table()
    first, table.prepared["rules"] = table.identity, 1
    assert not table.refresh()
    assert adapter.table() is table
    assert table.identity is first
    assert same_as_new(table, model)
    change(model.get_decoder())
    assert table.refresh()
    assert table.identity != first
    assert not table.prepared
    assert same_as_new(table, model)
    assert not table.refresh()


def test_outside_the_decoder_too() -> None:
    model = llava(torch.float32)
    table = Adapter(model).table()
    tower = model.model.vision_tower
    before = table.identity
    tower.further = nn.Linear(2, 2)
    assert table.refresh()
    assert tower.further in table.everything
    assert table.identity == before, "caches are about decoder and head"


def test_weights_that_accelerate_moves_in_and_out_are_no_exchange() -> None:
    model = llava(torch.float32)
    decoder = model.get_decoder()
    decoder._hf_hook = object()
    table = Adapter(model).table()
    for parameter in ("cpu", "meta"):
        decoder.norm.weight = nn.Parameter(torch.ones(32, device=parameter))
        assert not table.refresh()

    class Packed(nn.Parameter):
        pass

    decoder.norm.weight = Packed(torch.ones(32))
    assert table.refresh()


def test_modules_parameters_and_configs() -> None:
    model = llava(torch.float32)
    table = Adapter(model).table()
    decoder = model.get_decoder()
    assert set(table.everything) == set(model.modules())
    assert {id(p) for p in table.parameters()} == {id(p) for p in model.parameters()}
    assert table.modules == [*modules_of(decoder), model.lm_head]
    configs = {id(c): c for m in decoder.modules() if (c := vars(m).get("config")) is not None}
    assert {id(c) for c in table.configs()} == set(configs) == {id(c) for c in configs_of(map(vars, decoder.modules()))}


def test_an_adapter_at_rest_holds_no_modules() -> None:
    """Weights that a quantiser has replaced go at once."""
    model = llava(torch.float32)
    adapter = Adapter(model)
    with adapter.listed() as table:
        held = weakref.ref(table)
        assert adapter.table() is table
    del table
    assert held() is None
    old = weakref.ref(model.get_decoder().layers[0].mlp)
    exchange(model.get_decoder())
    gc.collect()
    assert old() is None
