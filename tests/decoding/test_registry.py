"""Decoding methods by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import limelight
from limelight.decoding import registry
from limelight.decoding.registry import strategies, strategy
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError


def test_every_module_with_a_table_takes_part() -> None:
    known = strategies()
    assert {"greedy", "lime"} <= set(known)
    assert list(known) == sorted(known)
    for path in Path(registry.__file__).parent.glob("*.py"):
        if "STRATEGIES = {" in path.read_text():
            loaded = __import__(f"limelight.decoding.{path.stem}", fromlist=["STRATEGIES"])
            assert all(known[name] is factory for name, factory in loaded.STRATEGIES.items())


@pytest.mark.parametrize("name", sorted(strategies()))
def test_every_strategy_is_called_what_it_is_filed_under(name: str) -> None:
    made = strategy(name)
    assert isinstance(made, Strategy)
    assert made.name == name
    assert strategy(name, **made.settings()) == made  # its settings reproduce it
    assert "_" not in name or name.replace("_", "").isalnum()


def test_settings_are_handed_on() -> None:
    assert strategy("lime", lr=0.5, steps=3) == limelight.lime(lr=0.5, steps=3)


def test_unknown_names_and_settings_raise() -> None:
    with pytest.raises(SettingError) as caught:
        strategy("limes")
    assert "lime" in caught.value.hint
    for bad in ({"learning_rate": 1.0}, {"steps": 0}):
        with pytest.raises(SettingError) as caught:
            strategy("lime", **bad)
        assert caught.value.hint
