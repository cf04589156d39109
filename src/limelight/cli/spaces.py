"""The settings that ``limelight tune`` tries, per strategy; ``--space`` replaces them.

Published settings are among them. A strategy that is not listed varies its positive numbers around their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limelight.benchmarks.tuning import nearby
from limelight.cli.sweep import Values, settings

_CONTRAST: Values = {"alpha": [0.5, 1.0, 2.0, 3.0], "beta": [0.02, 0.1]}
SPACES: Mapping[str, Values] = {
    "lime": {"lr": [3e-4, 1e-3, 3e-3, 1e-2]},
    "lime-cached": {"objective": ["difference", "margin"], "lr": [1e-3, 3e-3, 1e-2, 3e-2]},
    "relevance-contrastive": {"alpha": [1.0, 2.0, 4.0, 8.0], "beta": [0.02, 0.1]},
    "vcd": _CONTRAST,
    "icd": _CONTRAST,
    "avisc": _CONTRAST,
    "aad": {"alpha": [0.5, 1.0, 2.0, 3.0], "beta": [0.0, 0.1]},
    "m3id": {"variant": ["paper", "released"], "decay": [0.02, 0.1, 0.3, 0.7]},
    "pai": {"alpha": [0.2, 0.5], "gamma": [1.1, 1.5], "first_token": ["released", "boosted"]},
    "dola": {"layers": ["low", "high"], "beta": [0.02, 0.1]},
    "deco": {"alpha": [0.15, 0.3, 0.6, 1.0], "top_p": [0.9, 0.99]},
    "memvr": {"ratio": [0.06, 0.12, 0.25, 0.5], "threshold": [0.6, 0.75]},
    "vaf": {"enhance": [1.15, 1.5], "suppress": [0.95, 0.5]},
    "rudder": {"alpha": [0.5, 2.0, 5.0, 20.0], "gate": ["beta", "constant"]},
    "vista": {"strength": [0.01, 0.05, 0.17], "alpha": [0.0, 0.3]},
    "ilvad": {"alpha": [2.5, 5.0], "tau": [2.0, 5.0]},
    "agla": {"alpha": [1.0, 2.0], "beta": [0.1, 0.5], "kept": [0.5, 0.8]},
    "flb": {"gamma": [0.1, 0.3, 0.6], "decay": [0.05, 0.2]},
    "iat": {"alpha": [0.2, 0.4, 0.8, 1.2]},
    "kvsmooth": {"strength": [0.3, 0.6, 0.9], "radius": [0.1, 0.2]},
    "opera": {"weight": [0.3, 1.0, 3.0], "beams": [3, 5]},
    "lrp-beam": {"tau": [0.05, 0.1, 0.3], "beams": [3, 5]},
    "look-again": {"when": ["auto", "uncertain", "always"], "views": [2, 3, 5]},
    "reconsider": {"threshold": [2.5, 3.25, 4.0], "margin": [0.5, 1.5]},
}
VARIED = 2  # of an unlisted strategy, at most so many numbers


def space_of(name: str, given: Values) -> Values:
    """Return the values to try for a strategy: those given, else its space, else values near its defaults."""
    if given:
        return given
    if name in SPACES:
        return SPACES[name]
    found = {
        k: near for k, default in settings(name).items() if isinstance(default, float) and (near := nearby(default))
    }
    return dict(list(found.items())[:VARIED])


def defaults_of(name: str) -> dict[str, Any]:
    """Return a strategy's default settings, those without one omitted."""
    import inspect

    return {k: v for k, v in settings(name).items() if v is not inspect.Parameter.empty}
