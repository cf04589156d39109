"""A model that is dropped is freed: no cache of the library, and no result it handed out, keeps it alive."""

from __future__ import annotations

import gc
import pkgutil
import sys
import weakref
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

import pytest

import limelight
from limelight.decoding.loop import custom_generate
from limelight.decoding.methods.lime import lime
from limelight.decoding.methods.lime_cached import lime_cached
from limelight.decoding.methods.meter import meter
from limelight.errors import LimelightError
from limelight.models.adapter import Adapter
from limelight.relevance import attachment
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.composites import CP_LRP
from tests.zoo import ZOO


def caches() -> Iterator[tuple[str, Any]]:
    """Every table by model of the package, found by looking through its modules."""
    for info in pkgutil.walk_packages(limelight.__path__, "limelight."):
        if info.name.split(".")[1] in ("models", "relevance", "grounding", "decoding"):
            import_module(info.name)
    seen: set[int] = set()
    for name, module in sorted(sys.modules.items()):
        for key, value in vars(module).items() if name.startswith("limelight.") else ():
            if isinstance(value, WeakKeyDictionary) and id(value) not in seen:
                seen.add(id(value))
                yield f"{name}.{key}", value


def test_the_tables_are_found() -> None:
    assert len(list(caches())) >= 5


def used(name: str, strategy: Any = None) -> tuple[list[weakref.ref[Any]], list[Any]]:
    """References to a model after everything that fills a table, and what its user still holds."""
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(model)
    adapter = Adapter(model)
    kept: list[Any] = []

    def generate(strategy: Any) -> Any:
        fn = custom_generate(strategy, details=True, parent_model=adapter)
        return model.generate(
            **inputs, custom_generate=fn, max_new_tokens=2, do_sample=False, return_dict_in_generate=True
        )

    for run in (lambda: attribute(adapter, inputs, composite=CP_LRP), lambda: generate(strategy or meter())):
        try:
            kept.append(run())
        except (LimelightError, ValueError) as error:  # families without generate or a forward mode
            kept.append(str(error))
    return [weakref.ref(x) for x in (model, adapter.decoder, adapter.head, adapter)], kept


FAMILIES = [n for n in ZOO if n != "idefics"]  # which names no picture token


@pytest.mark.parametrize("first", range(0, len(FAMILIES), 12))
def test_every_family_is_freed(first: int) -> None:
    """Twelve families a collection, which takes longer than they do."""
    before = {key: len(table) for key, table in caches()}
    held = {name: used(name) for name in FAMILIES[first : first + 12]}
    gc.collect()
    assert {name: [r() is None for r in refs] for name, (refs, _) in held.items()} == dict.fromkeys(held, [True] * 4)
    assert all(len(table) <= before[key] for key, table in caches())
    assert not attachment._HELD


def test_cached_lime_and_its_answers_keep_nothing_either() -> None:
    for strategy in (lime_cached(), lime(steps=2)):
        references, kept = used("gemma3n", strategy)
        gc.collect()
        assert [r() is None for r in references] == [True] * 4
        assert kept


def test_also_after_an_exception_inside_a_block() -> None:
    model = ZOO["gemma3n"].build()
    adapter = Adapter(model)
    with pytest.raises(ZeroDivisionError), attached(adapter), attached(adapter, CP_LRP):
        raise ZeroDivisionError
    reference = weakref.ref(adapter.decoder)
    del model, adapter
    gc.collect()
    assert reference() is None
