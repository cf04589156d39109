"""What a request says: the extra arguments by which a method is chosen and two requests are paired.

``SamplingParams.extra_args`` in Python, ``vllm_xargs`` in a request to the OpenAI-compatible server:

    limelight         flb | vcd | icd | m3id | aad
    limelight_pair    an id that the answer's request and its contrast request share (all methods but flb)
    limelight_role    answer (default) | contrast
    limelight_NAME    a setting, such as limelight_alpha
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limelight.errors import SettingError

METHOD, PAIR, ROLE = "limelight", "limelight_pair", "limelight_role"
ROLES = ("answer", "contrast")
# settings and their defaults, as in limelight.decoding.methods
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "flb": {"gamma": 0.3, "decay": 0.05, "beta": 0.1},
    "vcd": {"alpha": 1.0, "beta": 0.1},
    "icd": {"alpha": 1.0, "beta": 0.1},
    "m3id": {"decay": 0.02, "gate": 0.3, "beta": 0.0},
    "aad": {"alpha": 0.5, "beta": 0.0},
}
_MOST = {"beta": 1.0, "gate": 1.0}


@dataclass(frozen=True)
class Asked:
    """A request's method: its settings, its pair (``""`` without a partner), and whether it is the contrast request."""

    method: str
    settings: Mapping[str, float]
    pair: str = ""
    contrast: bool = False


def asked(extra: Mapping[str, Any] | None) -> Asked | None:
    """Read a request's extra arguments; None where it does not use the library.

    Raises:
        ValueError: unknown method, setting or role, a value out of range, or no pair where one is needed. (vLLM answers with
            this message.)
    """
    own = {k: v for k, v in (extra or {}).items() if k.startswith(METHOD)}
    if not own:
        return None
    method = own.pop(METHOD, None)
    if method not in SETTINGS:
        raise SettingError(f"{METHOD}: unknown method {method!r}", hint=f"one of {', '.join(SETTINGS)}")
    pair, role = str(own.pop(PAIR, "")), own.pop(ROLE, ROLES[0])
    if role not in ROLES:
        raise SettingError(f"{ROLE}: expected {' or '.join(ROLES)}, got {role!r}", hint=f"omit it for {ROLES[0]}")
    if method == "flb" and (pair or role != ROLES[0]):
        raise SettingError(f"{METHOD}: flb has no second request", hint=f"omit {PAIR} and {ROLE}")
    if method != "flb" and not pair:
        raise SettingError(f"{METHOD}: {method} needs {PAIR}", hint="an id shared with its contrast request")
    settings = dict(SETTINGS[method])
    for name, value in own.items():
        key = name.removeprefix(f"{METHOD}_")
        if key not in settings:
            raise SettingError(f"{method} has no setting {key!r}", hint=f"it has {', '.join(settings)}")
        settings[key] = _number(key, value)
    return Asked(str(method), settings, pair, role == "contrast")


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 <= number <= _MOST.get(key, math.inf) or math.isinf(number):
        most = f" and at most {_MOST[key]:g}" if key in _MOST else ""
        raise SettingError(
            f"{METHOD}_{key}: expected a number of at least 0{most}, got {value!r}", hint="omit it for the default"
        )
    return number


def check_sampling(params: Any) -> None:
    """Raise ``ValueError`` unless both requests of a pair are sure to choose the same token: greedy, or with a seed, and without
    penalties, which count a prompt's own words."""
    found = asked(getattr(params, "extra_args", None))
    if found is None or not found.pair:
        return
    if getattr(params, "temperature", 0.0) and getattr(params, "seed", None) is None:
        raise SettingError(
            f"{METHOD}: {found.method} with sampling needs a seed", hint="the same for both requests of a pair"
        )
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    unequal = [k for k, v in neutral.items() if getattr(params, k, v) != v]
    if unequal:
        raise SettingError(
            f"{METHOD}: {found.method} cannot be combined with {', '.join(unequal)}",
            hint="leave them at their defaults",
        )
    if getattr(params, "n", 1) != 1:
        raise SettingError(f"{METHOD}: {found.method} needs n=1, got n={params.n}", hint="send one pair per answer")
