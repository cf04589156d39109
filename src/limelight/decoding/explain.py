"""Per-token data for report pages under any strategy: relevance, and the meter's candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.methods.meter import Metered
from limelight.decoding.methods.meter import meter as with_meter
from limelight.decoding.strategy import Strategy
from limelight.models.adapter import wrap
from limelight.relevance.attribute import attribute_generated
from limelight.relevance.composites import ATTN_LRP, Composite
from limelight.types import Generation


def watched(strategy: Strategy | None = None) -> Strategy:
    """Return the strategy with a meter running beside it, under its own name, so that steps contain candidates."""
    return Metered(strategy or Greedy()) if strategy is None or isinstance(strategy, Greedy) else with_meter(strategy)


def explained(
    model: Any, generation: Generation, processor: Any = None, *, composite: Composite = ATTN_LRP
) -> Generation:
    """Return the same answer with relevance at every step.

    Strategies without a backward pass do not compute relevance. It is computed here for the finished answer with the
    *unchanged* model: one forward of prompt and answer, one backward per token. Steps that have a relevance keep it. The
    meter's ``contributions`` are kept; ``shares`` are added.

    Raises:
        NotDifferentiableError, UnknownKindError: see :func:`limelight.attribute`.

    Example:
        >>> answer = limelight.generate(adapter, messages=ask, media=media, strategy="meter")  # doctest: +SKIP
        >>> save_page("out.html", explained(adapter, answer))  # doctest: +SKIP
    """
    if all(s.relevance is not None for s in generation.steps):
        return generation
    prompt = generation.prompt
    found = attribute_generated(
        wrap(model, processor),
        prompt.tensors,
        generation.token_ids,
        composite=composite,
        prompt_spans=prompt.spans or None,
    )
    steps = tuple(
        s if s.relevance is not None else replace(s, relevance=r, shares=r.shares())
        for s, r in zip(generation.steps, found, strict=True)
    )
    return replace(generation, steps=steps)
