"""Beam search over a strategy's logits: transformers' own search, run on the strategy's session in place of the model.

``num_beams`` of ``generate`` works with every strategy whose capabilities say ``beams``. transformers prepares the rows
(each prompt ``num_beams`` times) and its ``GenerationMixin._beam_search`` searches; the session supplies the logits and
follows when beams are reordered. So length penalty, early stopping, end tokens, returned sequences and processors have
transformers' meaning, and a strategy that changes nothing gives transformers' own answer. A hypothesis is scored by the
log-probabilities of the strategy's distribution, plausibility cut included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList, StoppingCriteriaList

from limelight import compat
from limelight.compat import CausalLMOutputWithPast, GenerateBeamDecoderOnlyOutput
from limelight.decoding.own_relevance import OwnRelevance
from limelight.decoding.processors import applied, require_stateless
from limelight.decoding.steps import OnStep, build_step
from limelight.decoding.strategy import GenerationContext, StepOutput, Strategy, capabilities_of
from limelight.errors import NotFiniteError, UnsupportedError
from limelight.types import Step


@dataclass
class GroundedBeamOutput(GenerateBeamDecoderOnlyOutput):  # type: ignore[misc]
    """transformers' output of a beam search, extended by ``steps``: one tuple of :class:`Step` per returned sequence."""

    steps: tuple[tuple[Step, ...], ...] | None = None


def refuse_beams(strategy: Strategy, context: GenerationContext, streamer: Any) -> None:
    """Raise UnsupportedError where this strategy, or this call, cannot be searched with beams."""
    config, what = context.config, f"num_beams={context.config.num_beams!r}"
    alone = "use num_beams=1"
    if not capabilities_of(strategy).beams:
        raise UnsupportedError(
            f"{what} requests beam search, which {strategy.name} does not support",
            hint=f"{alone}; `limelight strategies` lists the strategies with beams (opera and lrp-beam have their own)",
        )
    if config.do_sample:
        raise UnsupportedError(
            f"{what} with do_sample=True requests beam sampling, which limelight's decoding does not support",
            hint="use one of the two",
        )
    if streamer is not None:
        raise UnsupportedError(
            f"{what}: a beam search has nothing to stream before it ends", hint=f"leave the streamer out, or {alone}"
        )
    if context.past or compat.is_user_cache(context.kwargs.get("past_key_values")):
        raise UnsupportedError(
            f"{what}: beam search on a given cache is not supported", hint=f"leave past_key_values out, or {alone}"
        )
    if getattr(config, "use_cache", None) is False:
        raise UnsupportedError(f"{what}: beam search needs the cache", hint=f"leave use_cache out, or {alone}")
    require_stateless(context.sampler.processors, "beam search")


@torch.no_grad()
def search(strategy: Strategy, context: GenerationContext, stopping: Any, on_step: OnStep | None, top: int) -> Any:
    """Search. Returns ids ``[B * num_return_sequences, T + n]``, or a :class:`GroundedBeamOutput`.

    Steps are those of the returned sequences, and ``on_step`` is called with them once the search is over. Relevance is
    computed for them if ``context.relevance`` asks for it. There is no ``past_key_values``: the streams end with all beams.

    Raises:
        NotFiniteError: the strategy returned NaN logits.
    """
    adapter, config = context.adapter, context.config
    with adapter.listed(), adapter.exclusive():
        model = SearchedModel(strategy, context, top)
        found = compat.beam_search(
            model, context.ids, LogitsProcessorList(context.sampler.processors), Observed(stopping, model), config
        )
        ids: Tensor = found if isinstance(found, Tensor) else found.sequences
        steps = model.steps(ids)
    for row, row_steps in enumerate(steps):
        for step in row_steps:
            if on_step is not None:
                on_step(row, step)
    if isinstance(found, Tensor):
        return ids
    kept = {name: getattr(found, name) for name in ("sequences_scores", "scores", "logits", "beam_indices")}
    return GroundedBeamOutput(sequences=ids, steps=steps, **kept)


class Observed(StoppingCriteriaList):  # type: ignore[misc]
    """Stopping criteria that also tell the model which hypotheses end."""

    def __init__(self, criteria: Any, model: SearchedModel) -> None:
        super().__init__(criteria)
        self.model = model

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended: Tensor = super().__call__(input_ids, scores, **kwargs)
        width = len(input_ids) // self.model.prompts
        for row in ended.nonzero()[:, 0].tolist():
            if row % width < self.model.beams:  # the others are never returned
                self.model.record(row // width, input_ids[row])
        return ended


class SearchedModel(GenerationMixin):  # type: ignore[misc]
    """What transformers' search takes for the model and its cache: a session, and the steps of its hypotheses."""

    def __init__(self, strategy: Strategy, context: GenerationContext, top: int) -> None:
        self.strategy, self.context, self.top = strategy, context, top
        self.config = SimpleNamespace(is_encoder_decoder=False)  # the output's class
        self.beams = int(context.config.num_beams)
        self.prompts, self.start = len(context.ids) // self.beams, context.ids.shape[1]
        self.session: Any = strategy.session(replace(context, details=False, relevance=False))
        self.ids = context.ids
        self.output: StepOutput | None = None
        self.processed = torch.zeros(0)
        self.found: dict[tuple[int, tuple[int, ...]], Step] = {}

    # What transformers' search calls.

    def _prefill(self, *_: Any, **__: Any) -> Any:
        return self._forward(None)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **_: Any) -> dict[str, Any]:
        return {"input_ids": input_ids}

    def __call__(self, input_ids: Tensor, **_: Any) -> Any:
        for row in range(len(input_ids)):
            self.record(row // self.beams, input_ids[row])
        self.ids = input_ids
        return self._forward(input_ids[:, -1])

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **_: Any) -> Any:
        return model_kwargs

    def reorder_cache(self, beam_idx: Tensor) -> None:
        rows = beam_idx.long()
        if not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            self.session.reorder(rows)

    # Its own.

    def _forward(self, tokens: Tensor | None) -> Any:
        self.output = output = self.session.next(tokens)
        logits = output.logits
        if bool(torch.isnan(logits).any()) and not getattr(self.context.config, "remove_invalid_values", False):
            raise NotFiniteError(
                f"{self.strategy.name} produced NaN logits at token {self.ids.shape[1] - self.start}",
                hint="try float32, or a smaller lr / alpha",
            )
        self.processed = self._processed(logits)
        barred = torch.isneginf(self.processed.amax(dim=-1))
        if output.unchanged is not None and bool(barred.any()):  # the cut leaves only what the processors exclude
            logits = torch.where(barred[:, None], output.unchanged, logits)
            self.processed = self._processed(logits)
        return CausalLMOutputWithPast(logits=logits[:, None])

    def _processed(self, logits: Tensor) -> Tensor:
        return applied(self.context.sampler.processors, self.ids, torch.log_softmax(logits, dim=-1))

    def record(self, prompt: int, sequence: Tensor) -> None:
        """Keep the step of the last token of ``sequence`` [T + n], which continues one of the prompt's beams."""
        key = (prompt, tuple(sequence[self.start :].tolist()))
        if key in self.found or self.output is None:
            return
        first = prompt * self.beams
        same = (self.ids[first : first + self.beams] == sequence[:-1]).all(-1)
        row, token = first + int(same.nonzero()[0, 0]), int(sequence[-1])
        detail = self.output.detail(row, token)
        self.found[key] = build_step(self.context.adapter, detail, self.processed[row], token, self.top)

    def steps(self, ids: Tensor) -> tuple[tuple[Step, ...], ...]:
        """Return the steps of the returned sequences ``[B * num_return_sequences, T + n]``."""
        each = len(ids) // self.prompts
        out = []
        for row, tokens in enumerate(ids[:, self.start :].tolist()):
            keys = [(row // each, tuple(tokens[: n + 1])) for n in range(len(tokens))]
            out.append([self.found[key] for key in keys if key in self.found])
        if self.context.relevance:
            for rank in range(each):
                self._explain(ids[rank::each], out[rank::each])
        return tuple(tuple(steps) for steps in out)

    def _explain(self, ids: Tensor, steps: list[list[Step]]) -> None:
        """Add relevance to the steps of one sequence per prompt, in place."""
        own, rows = OwnRelevance(self.context), ids.repeat_interleave(self.beams, dim=0)
        for n in range(ids.shape[1] - self.start):
            for prompt, found in enumerate(steps):
                if n < len(found):
                    relevance = own.of(prompt * self.beams, found[n].token, rows[:, : self.start + n])
                    found[n] = replace(found[n], relevance=relevance, shares=relevance.shares())
