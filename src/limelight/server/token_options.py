"""The strategy of a request: by name, with settings that are checked and bounded."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from limelight.decoding.registry import strategies, strategy
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError
from limelight.server.limits import COSTLY, MAX_SETTING_CHARACTERS
from limelight.server.problems import invalid
from limelight.server.schema import Grounded

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def strategy_of(asked: Grounded, default: Strategy, allowed: Collection[str]) -> Strategy:
    """What a request decodes with: the server's own strategy unless it names another or gives settings.

    Raises:
        ApiError: 400: not allowed here, or settings that are unknown, of the wrong type or beyond what a client may ask.
    """
    name = default.name if asked.strategy is None else asked.strategy
    if asked.strategy is None and not asked.settings:
        return default
    if name not in allowed:
        listed = ", ".join(sorted(allowed))
        raise invalid(f"strategy {name!r} is not offered; one of {listed}", param="limelight.strategy")
    if name == default.name and not asked.settings:
        return default
    factory = strategies()[name]
    settings = _checked(name, factory, asked.settings)
    try:
        return strategy(name, **settings)
    except SettingError as error:
        raise invalid(f"{error.message} ({error.hint})", param="limelight.settings") from error


@cache
def _model(factory: Any) -> type[BaseModel]:
    """What the settings of a strategy are checked by."""
    hints = {k: v for k, v in get_type_hints(factory.__init__).items() if k != "return"} | {"after": int | str | None}
    fields: dict[str, Any] = {key: (hint, None) for key, hint in hints.items()}
    return create_model("Settings", __config__=_CONFIG, **fields)


def _checked(name: str, factory: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if isinstance(value, (str, list)) and len(value) > MAX_SETTING_CHARACTERS:
            raise invalid(f"{key[:64]} is too long", param="limelight.settings")
    try:
        # As JSON, lists become the tuples that strategies take, and types are strict all the same.
        model = _model(factory).model_validate_json(json.dumps(dict(given)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])[:64]
        known = ", ".join(_model(factory).model_fields) or "no settings"
        raise invalid(f"{name}: {where}: {first['msg']}; it has {known}", param="limelight.settings") from None
    checked = {key: getattr(model, key) for key in given}
    for key, value in checked.items():
        if key in COSTLY and value is not None and value > COSTLY[key]:
            raise invalid(f"{key} may be at most {COSTLY[key]} here", param="limelight.settings")
    return checked
