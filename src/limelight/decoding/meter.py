"""The grounding meter: which share of every generated word comes from what is seen or heard, while it is generated.

No backward pass and no second forward: one tangent row beside the cache (:mod:`limelight.relevance.tangents`). Decoding
is the model's own. Source: this library (AttnLRP in forward mode); the paper has no such meter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.dual import captured, check_composite, explainer, open_stream
from limelight.decoding.strategy import Detail, Outlook, Run, Session, Strategy
from limelight.relevance.tangents import modality_channel


@dataclass(frozen=True)
class Meter:
    """Plain decoding with modality shares, Phi_M of the top candidates, and a flag, token by token.

    Args:
        composite: ``attnlrp`` or ``cp-lrp`` (whose parts sum to the logit, biases aside).
    """

    composite: str = "attnlrp"

    def __post_init__(self) -> None:
        check_composite(self.composite)

    @property
    def name(self) -> str:
        return "meter"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, run: Run) -> MeterSession:
        return MeterSession(self, run)


class MeterSession:
    def __init__(self, strategy: Meter, run: Run) -> None:
        self.run = run
        call, modality = captured(run)
        self.dual = open_stream(run, call, [modality_channel(modality, call.mask)], strategy.composite)

    def next(self, tokens: Tensor | None) -> Outlook:
        logits, phi = measure(self.dual, tokens)
        return Outlook(logits, explain=explainer(self.run, logits, phi))


def measure(dual: Any, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits ``[B, V]`` and Phi of the first channel ``[B, V]`` after ``tokens`` (None: after the prompt)."""
    with torch.inference_mode(False), torch.no_grad():
        if tokens is None:
            output = dual.prefill()
        else:
            dual.append(tokens.clone())
            output = dual.current()
        logits, phi = dual.heads(output)
    return logits, phi[0]


@dataclass(frozen=True)
class Metered:
    """Any strategy with a meter running beside it: its answer, and the unchanged model's grounding of each token."""

    inner: Strategy
    composite: str = "attnlrp"

    @property
    def name(self) -> str:
        return self.inner.name

    def settings(self) -> dict[str, Any]:
        return {**self.inner.settings(), "meter": self.composite}

    def session(self, run: Run) -> MeteredSession:
        return MeteredSession(self, run)


class MeteredSession:
    def __init__(self, strategy: Metered, run: Run) -> None:
        self.inner: Session = strategy.inner.session(run)
        self.meter = Meter(strategy.composite).session(run)

    def next(self, tokens: Tensor | None) -> Outlook:
        outlook, metered = self.inner.next(tokens), self.meter.next(tokens)

        def explain(row: int, token: int) -> Detail:
            from dataclasses import replace

            own, seen = outlook.detail(row, token), metered.detail(row, token)
            return replace(
                own,
                shares=own.shares or seen.shares,
                plain=seen.plain,
                candidates=seen.candidates,
                flagged=seen.flagged,
            )

        return Outlook(outlook.logits, explain=explain)


def meter(strategy: Strategy | None = None, *, composite: str = "attnlrp") -> Strategy:
    """Plain decoding with the grounding meter, or ``strategy`` with the meter beside it."""
    if strategy is None or strategy.name in ("greedy", "meter"):
        return Meter(composite)
    if strategy.name in ("lime-cached", "relevance-contrastive"):
        return strategy  # they carry the meter already
    return Metered(strategy, composite)


STRATEGIES = {"meter": Meter}
