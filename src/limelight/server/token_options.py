"""Validation of a request's decoding strategy and its settings."""

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


def strategy_of(options: Grounded, default: Strategy, allowed: Collection[str]) -> Strategy:
    """Return the strategy of a request: the server's default unless it names another or gives settings.

    Raises:
        ApiError: 400: the strategy is not offered, or a setting is unknown, of the wrong type or above the limit.
    """
    name = default.name if options.strategy is None else options.strategy
    if options.strategy is None and not options.settings:
        return default
    if name not in allowed:
        listed = ", ".join(sorted(allowed))
        raise invalid(f"strategy {name!r} is not offered; available: {listed}", param="limelight.strategy")
    if name == default.name and not options.settings:
        return default
    factory = strategies()[name]
    settings = _checked(name, factory, options.settings)
    try:
        return strategy(name, **settings)
    except SettingError as error:
        raise invalid(f"{error.message} ({error.hint})", param="limelight.settings") from error


@cache
def _model(factory: Any) -> type[BaseModel]:
    """Return the pydantic model that validates a strategy's settings."""
    hints = {k: v for k, v in get_type_hints(factory.__init__).items() if k != "return"} | {"after": int | str | None}
    fields: dict[str, Any] = {key: (hint, None) for key, hint in hints.items()}
    return create_model("Settings", __config__=_CONFIG, **fields)


def _checked(name: str, factory: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if isinstance(value, (str, list)) and len(value) > MAX_SETTING_CHARACTERS:
            raise invalid(f"{key[:64]} is too long", param="limelight.settings")
    try:
        # JSON mode converts lists to the tuples that strategies take, but is otherwise strict.
        model = _model(factory).model_validate_json(json.dumps(dict(given)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(p) for p in first["loc"])[:64]
        known = ", ".join(_model(factory).model_fields) or "no settings"
        raise invalid(
            f"{name}: {where}: {first['msg']}; available settings: {known}", param="limelight.settings"
        ) from None
    checked = {key: getattr(model, key) for key in given}
    for key, value in checked.items():
        if key in COSTLY and value is not None and value > COSTLY[key]:
            raise invalid(f"{key} may be at most {COSTLY[key]}", param="limelight.settings")
    return checked
