"""Several values of a setting: ``--sweep alpha=1,2,4`` of ``limelight bench``, ``--space`` of ``limelight tune``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

from limelight.cli import options
from limelight.errors import SettingError

Values = dict[str, list[Any]]


def values_of(texts: Sequence[str], names: Sequence[str], flag: str = "--sweep") -> dict[str, Values]:
    """Parse ``key=v1,v2,...`` (for every strategy that has the setting) and ``strategy.key=v1,v2,...``.

    Values are JSON or text: ``layers=low,high``, ``scale=true,false``, ``layers=[1,2],[3]``.

    Raises:
        SettingError: not of this form, a strategy that is not among ``names``, or a setting that no such strategy has.
    """
    found: dict[str, Values] = {name: {} for name in names}
    known = {name: settings(name) for name in names}
    for text in texts:
        key, equals, listed = text.partition("=")
        owner, dot, own = key.strip().rpartition(".")
        if not equals or not own or (dot and owner not in names):
            raise SettingError(
                f"{flag} {text!r} is not key=value,value or strategy.key=value,value", hint=f"strategies: {list(names)}"
            )
        owners = [n for n in ([owner] if dot else names) if own in known[n]]
        if not owners:
            has = {n: sorted(known[n]) for n in ([owner] if dot else names)}
            raise SettingError(f"no strategy has a setting {own!r}", hint=f"their settings: {has}")
        for name in owners:
            if own in found[name]:
                raise SettingError(f"{flag} gives {own!r} of {name} twice", hint="give all values at once")
            found[name][own] = _values(listed, f"{flag} {text!r}")
    return found


def settings(name: str) -> dict[str, Any]:
    """Return a strategy's settings and their defaults; ``sampled`` is greedy with sampling."""
    from limelight.decoding.registry import strategies

    known = strategies()
    if name == "sampled":
        name = "greedy"
    if name not in known:
        raise SettingError(f"unknown strategy {name!r}", hint="see `limelight strategies`")
    return options.settings_of(known[name])


def combinations(values: Values) -> list[dict[str, Any]]:
    """Return every combination of the values, the last setting varying fastest; ``[{}]`` without values."""
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


def label(name: str, settings: dict[str, Any]) -> str:
    """Return a short name that can be a folder's: ``vcd,alpha=2,layers=low``."""
    parts = [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in settings.items()]
    return ",".join([name, *parts]).replace("/", "_").replace(" ", "")


def _values(listed: str, said: str) -> list[Any]:
    try:
        values = json.loads(f"[{listed}]")
    except ValueError:
        values = [_value(x.strip()) for x in listed.split(",")]
    if not values or any(v == "" for v in values):
        raise SettingError(f"{said} has an empty value", hint="for example alpha=0.5,1,2")
    if len({json.dumps(v) for v in values}) < len(values):
        raise SettingError(f"{said} has a value twice", hint="give every value once")
    return list(values)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
