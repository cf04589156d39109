"""The grounding meter: how much of every generated token's logit comes from the media, computed during generation.

It needs no backward pass and no second forward: one tangent row beside the cache
(:mod:`limelight.relevance.forward.stream`). Decoding is unchanged. Source: this library (AttnLRP in forward mode); not in
the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.dual import captured, check_composite, explainer, open_stream, split_channels
from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.strategy import (
    Capabilities,
    Detail,
    GenerationContext,
    Method,
    Session,
    StepOutput,
    Strategy,
    capabilities_of,
)
from limelight.errors import SettingError
from limelight.relevance.forward.stream import DualStream, modality_channel

# The fields of a step that the meter sets, under any strategy.
MEASURED = (
    *("contributions", "plain", "candidates", "flagged"),
    *("grounding", "rival_grounding", "grounding_by_modality", "p_supported", "support"),
)


@dataclass(frozen=True)
class Meter(Method):
    """Plain decoding that reports each modality's contribution and grounding score, Phi_M of top candidates, and a flag.

    ``Step.contributions`` are parts of the logit, measured without a backward pass; ``Step.shares``, parts of the summed
    absolute relevance, are a different quantity and need one (``limelight.generate(..., relevance=True)``).

    Args:
        composite: ``attnlrp`` or ``cp-lrp`` (whose parts sum to the logit, except for biases).
    """

    name = "meter"

    composite: str = "attnlrp"

    def __post_init__(self) -> None:
        check_composite(self.composite)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batches=True, beams=True, needs_media=False, meter=self.composite)

    def session(self, context: GenerationContext) -> MeterSession:
        return MeterSession(self, context)


class MeterSession:
    def __init__(self, strategy: Meter, context: GenerationContext) -> None:
        self.context = context
        self.composite = strategy.composite
        self.dual = meter_stream(context, strategy.composite)

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits, phi, split = measure(self.dual, tokens)
        return StepOutput(logits, explain=explainer(self.context, logits, phi, split=split, composite=self.composite))

    def reorder(self, rows: Tensor) -> None:
        self.dual.reorder(rows)


def meter_stream(context: GenerationContext, composite: str) -> DualStream:
    """Open the prompt's dual stream, with a channel for Phi_M and one per modality if there are several."""
    call, modality = captured(context)
    channels = [modality_channel(modality, call.mask), *split_channels(context, call.mask, call.front)]
    return open_stream(context, call, channels, composite)


def measure(dual: DualStream, tokens: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return logits ``[B, V]`` after ``tokens`` (None: after the prompt), Phi_M ``[B, V]``, and Phi per modality if several."""
    with torch.inference_mode(False), torch.no_grad():
        if tokens is None:
            output = dual.prefill()
        else:
            dual.append(tokens.clone())
            output = dual.current()
        logits, phi = dual.heads(output)
    return logits, phi[0], {c.name: p for c, p in zip(dual.channels[1:], phi[1:], strict=True)}


@dataclass(frozen=True)
class Metered:
    """Runs a meter beside any strategy: the strategy's answer, with the unchanged model's grounding of each token."""

    inner: Strategy
    composite: str = "attnlrp"

    def __post_init__(self) -> None:
        check_composite(self.composite)

    @property
    def capabilities(self) -> Capabilities:
        return replace(capabilities_of(self.inner), meter=self.composite)

    @property
    def name(self) -> str:
        return self.inner.name

    def settings(self) -> dict[str, Any]:
        return {**self.inner.settings(), "meter": self.composite}

    def session(self, context: GenerationContext) -> MeteredSession:
        return MeteredSession(self, context)


class MeteredSession:
    def __init__(self, strategy: Metered, context: GenerationContext) -> None:
        self.inner: Session = strategy.inner.session(context)
        self.meter = Meter(strategy.composite).session(context)

    def next(self, tokens: Tensor | None) -> StepOutput:
        step_output, metered = self.inner.next(tokens), self.meter.next(tokens)

        def explain(row: int, token: int) -> Detail:
            own, measured = step_output.detail(row, token), metered.detail(row, token)
            return replace(own, **{name: getattr(measured, name) for name in MEASURED})

        return replace(step_output, explain=explain)

    def cache(self) -> Any:
        return self.inner.cache() if hasattr(self.inner, "cache") else None

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)  # type: ignore[attr-defined]
        self.meter.reorder(rows)


def meter(strategy: Strategy | None = None, *, composite: str | None = None) -> Strategy:
    """Return plain decoding with the grounding meter, or ``strategy`` with the meter beside it.

    Args:
        composite: ``attnlrp`` (default) or ``cp-lrp``.

    Raises:
        SettingError: ``strategy`` already has a meter with another composite.
    """
    if strategy is None or isinstance(strategy, Greedy):
        return Meter(composite or "attnlrp")
    own = capabilities_of(strategy).meter
    if own:
        if composite not in (None, own):
            raise SettingError(
                f"{strategy.name} measures with {own!r}, but a meter with {composite!r} was requested",
                hint=f"pass composite={composite!r} to the strategy itself",
            )
        return strategy
    return Metered(strategy, composite or "attnlrp")


STRATEGIES = {"meter": Meter}
