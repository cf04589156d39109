"""What a page shows of every word, whatever strategy chose it: its relevance, and the meter's candidates."""

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
    """The strategy with a meter beside it that keeps its own name (greedy stays greedy), so that steps hold candidates."""
    return Metered(strategy or Greedy()) if strategy is None or isinstance(strategy, Greedy) else with_meter(strategy)


def explained(
    model: Any, generation: Generation, processor: Any = None, *, composite: Composite = ATTN_LRP
) -> Generation:
    """The same answer with a relevance at every step.

    Strategies that need no backward pass leave relevance out. It is computed here for the finished answer by the
    *unchanged* model: one forward of prompt and answer, one backward a token. Steps that have a relevance keep it. The
    meter's ``contributions`` stay beside the ``shares`` that are added.

    Raises:
        NotDifferentiableError, UnknownKindError: see :func:`limelight.attribute`.

    Example:
        >>> said = limelight.generate(adapter, messages=ask, media=media, strategy="meter")  # doctest: +SKIP
        >>> save_page("out.html", explained(adapter, said))  # doctest: +SKIP
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
