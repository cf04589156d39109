"""Composites: tables that assign a rule to each layer kind.

    ATTN_LRP        AttnLRP: norms frozen, activations identity, gated products halved, attention q, k / 4 and v / 2
    CP_LRP          no relevance through q and k (Ali et al., 2022); relevance sums are the logit, biases and eps aside
    CP_LRP_LINEAR   the same without the bilinear rule: gates are constants too, and all goes to what they multiply
    RES_LRP         AttnLRP, and at residual additions relevance favours what agrees with the sum (ResLRP, gamma 1)
    PA_LRP          AttnLRP, and rotary positions get half of what passes the rotation (Bakish et al., 2025, 2506.02138)
    GRADIENT_INPUT  no rules: plain gradient x input

``RELEASED_AUDIO`` is what the authors' released code effectively runs on Qwen2-Audio (norms and MLP patched, attention not).

Conservation (biases, learned positions and eps aside): CP_LRP, CP_LRP_LINEAR: ``sum_i R_i`` is the logit. ATTN_LRP, RES_LRP,
PA_LRP: what passes the softmax is not conserved (Taylor's bias term is absorbed); RES_LRP conserves at every residual
addition, PA_LRP at every rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from limelight.errors import SettingError
from limelight.relevance.classify import layer_kinds
from limelight.relevance.kind import Rule
from limelight.relevance.layers import constant_gates, residual
from limelight.relevance.mode import Divisors


@dataclass(frozen=True)
class Composite:
    """A table: name of a kind (:class:`limelight.relevance.kind.LayerKind`) -> rule. Missing kinds are left unchanged.

    ``attention`` are the ``(q, k, v)`` divisors of the gradient: 0 stops the relevance there, 1 leaves it unchanged.
    ``forward``: the rules have a forward mode. ``positional``: rotary positions are inputs beside the embeddings
    (:mod:`limelight.relevance.positions`).

    Raises:
        SettingError: a rule for a kind that does not exist.
    """

    name: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    attention: Divisors = (1, 1, 1)
    forward: bool = False
    positional: bool = False

    def __post_init__(self) -> None:
        known = {kind.name for kind in layer_kinds()}
        if unknown := sorted(set(self.rules) - known):
            raise SettingError(
                f"composite {self.name!r} has rules for unknown kinds {unknown}",
                hint=f"one of {', '.join(sorted(known))}",
            )

    @property
    def plain(self) -> bool:
        return not self.rules and self.attention == (1, 1, 1)


_RULES: dict[str, Rule] = {kind.name: kind.run for kind in layer_kinds()}

ATTN_LRP = Composite("attnlrp", _RULES, (4, 4, 2), forward=True)
CP_LRP = Composite("cp-lrp", _RULES, (0, 0, 1), forward=True)
CP_LRP_LINEAR = Composite("cp-lrp-linear", constant_gates.rules_from(_RULES), (0, 0, 1), forward=True)
RES_LRP = Composite("reslrp", {**_RULES, residual.KIND.name: residual.agreeing()}, (4, 4, 2), forward=True)
PA_LRP = Composite("pa-lrp", _RULES, (4, 4, 2), forward=True, positional=True)
GRADIENT_INPUT = Composite("gradient-input")
RELEASED_AUDIO = Composite("released-audio", _RULES)

COMPOSITES = {
    c.name: c for c in (ATTN_LRP, CP_LRP, CP_LRP_LINEAR, RES_LRP, PA_LRP, GRADIENT_INPUT, RELEASED_AUDIO)
}  # fmt: skip


def composite_of(given: Composite | str) -> Composite:
    """Return a composite by name.

    Raises:
        SettingError: unknown name.
    """
    if isinstance(given, Composite):
        return given
    known = {_spelled(name): found for name, found in COMPOSITES.items()}
    if not isinstance(given, str) or _spelled(given) not in known:
        raise SettingError(f"unknown composite {given!r}", hint=f"one of {', '.join(COMPOSITES)}, or a Composite")
    return known[_spelled(given)]


def _spelled(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
