"""Beam search over a strategy's logits: transformers' own search, run on the strategy's session in place of the model.

``num_beams`` of ``generate`` works with every strategy whose capabilities say ``beams``. transformers prepares the rows
(each prompt ``num_beams`` times) and its ``GenerationMixin._beam_search`` searches; the session hands it its logits and
follows it when it reorders beams. So length penalty, early stopping, end tokens, returned sequences and processors have
transformers' meaning, and a strategy that changes nothing gives transformers' own answer. A hypothesis is scored by the
log-probabilities of the strategy's distribution, plausibility cut included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, StoppingCriteriaList

from limelight import compat
from limelight.compat import CausalLMOutputWithPast, GenerateBeamDecoderOnlyOutput
from limelight.decoding.loop_steps import OnStep, built_step, check_finite
from limelight.decoding.own_relevance import OwnRelevance
from limelight.decoding.processors import require_stateless
from limelight.decoding.strategy import GenerationContext, StepOutput, Strategy, capabilities_of
from limelight.decoding.streams import cache_after
from limelight.errors import UnsupportedError
from limelight.types import Step


@dataclass
class GroundedBeamOutput(GenerateBeamDecoderOnlyOutput):  # type: ignore[misc]
    """transformers' output of a beam search, extended by ``steps``: one tuple of :class:`Step` per returned sequence."""

    steps: tuple[tuple[Step, ...], ...] | None = None


def refuse_beams(strategy: Strategy, context: GenerationContext, streamer: Any) -> None:
    """Raise UnsupportedError where this strategy, or this call, cannot be searched with beams."""
    config = context.config
    if not capabilities_of(strategy).beams:
        raise UnsupportedError(
            f"num_beams={config.num_beams!r} requests beam search, which {strategy.name} does not support",
            hint="use num_beams=1; `limelight strategies` lists the strategies that support beams; opera() and lrp_beam() "
            "have their own",
        )
    if config.do_sample:
        raise UnsupportedError(
            f"num_beams={config.num_beams!r} with do_sample=True requests beam sampling, which limelight's decoding does "
            "not support",
            hint="use one of the two",
        )
    if streamer is not None:
        raise UnsupportedError(
            "a beam search has no token to stream before it ends", hint="leave the streamer out, or use num_beams=1"
        )
    if context.past:
        raise UnsupportedError(
            "beam search behind a filled cache is not supported", hint="leave past_key_values out, or use num_beams=1"
        )
    if getattr(config, "use_cache", None) is False:
        raise UnsupportedError("beam search needs the cache", hint="leave use_cache out, or use num_beams=1")
    require_stateless(context.sampler.processors, "beam search")


@torch.no_grad()
def search(
    strategy: Strategy, context: GenerationContext, stopping: Any, on_step: OnStep | None, *, return_cache: bool, top: int
) -> Any:
    """Search. Returns ids ``[B * num_return_sequences, T + n]``, or a :class:`GroundedBeamOutput`.

    ``on_step`` is called with the rows of the returned sequences once the search is over.
    """
    adapter, config = context.adapter, context.config
    with adapter.listed(), adapter.exclusive():
        model = SearchedModel(strategy, context, top)
        criteria = StoppingCriteriaList([*stopping])
        processors = compat.logits_process.LogitsProcessorList(context.sampler.processors)
        found = compat.beam_search(model, context.ids, processors, Observed(criteria, model), config)
        ids = found.sequences if isinstance(found, GenerateBeamDecoderOnlyOutput) else found
        steps = tuple(model.steps(row, ids) for row in range(ids.shape[0]))
    for row, row_steps in enumerate(steps):
        for step in row_steps if on_step is not None else ():
            on_step(row, step)  # type: ignore[misc]
    if not isinstance(found, GenerateBeamDecoderOnlyOutput):
        return ids
    cache = None
    if return_cache and ids.shape[0] == context.ids.shape[0] // config.num_beams and len(set(map(len, steps))) == 1:
        cache = cache_after(first_beams(context), ids)
    return GroundedBeamOutput(
        sequences=ids, sequences_scores=found.sequences_scores, scores=found.scores, logits=found.logits,
        beam_indices=found.beam_indices, past_key_values=cache, steps=steps,
    )  # fmt: skip
