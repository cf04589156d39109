"""The token loop, and its integration into transformers' ``generate``.

transformers prepares inputs, processors and stopping criteria, then calls :func:`decode` through
``custom_generate=limelight.custom_generate(strategy, ...)``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import MaxTimeCriteria, StoppingCriteriaList, StopStringCriteria

from limelight import compat
from limelight.compat import GenerateDecoderOnlyOutput
from limelight.decoding.beam_search import refuse_beams, search
from limelight.decoding.continuing import continued, is_partial, past_of
from limelight.decoding.generation_options import check_arguments, check_config, check_encoder_decoder, check_shards
from limelight.decoding.own_relevance import OwnRelevance
from limelight.decoding.sampler import TokenSampler
from limelight.decoding.steps import OnStep, build_step
from limelight.decoding.strategy import GenerationContext, Runs, Strategy, capabilities_of, check_media
from limelight.decoding.streams import cache_after, checked_stream
from limelight.errors import NotFiniteError, PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter, wrap
from limelight.models.runtime.inner_model import inside
from limelight.relevance.attachment import require_gradients
from limelight.types import Prompt, Span, Step


@dataclass
class GroundedOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """transformers' output of generate, extended by ``steps``: one tuple of :class:`Step` per row."""

    steps: tuple[tuple[Step, ...], ...] | None = None


def custom_generate(
    strategy: Strategy,
    *,
    processor: Any = None,
    streamer: Any = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    seed: int | Sequence[int] | None = None,
    modality_ids: Tensor | None = None,
    tensors: Mapping[str, Any] | None = None,
    spans: Sequence[tuple[Span, ...]] | None = None,
    earlier: Sequence[Runs] | None = None,
    prompts: Sequence[Prompt] | None = None,
    details: bool | None = False,
    on_step: OnStep | None = None,
    top_logprobs: int = 0,
    parent_model: Any = None,
    return_cache: bool = True,
) -> Callable[..., Any]:
    """Build the callable for ``model.generate(**inputs, custom_generate=...)``.

    Args:
        strategy: the decoding method, e.g. ``lime()``.
        processor: the model's processor: needed for ``stop_strings``, token texts, and methods with a second prompt.
        streamer: a transformers streamer; it is always ended, also on errors. Pass it here: with custom decoding,
            generate() only puts the prompt into its own ``streamer`` argument, and never ends it.
        stop_strings: as in generate(), which refuses them together with a callable.
        tokenizer: for ``stop_strings``, instead of the processor's.
        seed: sampling seed; row ``r`` uses ``seed + r``, so rows are independent of each other. None: torch's global
            state, as in transformers.
        modality_ids: ``[B, T]``: 0 text, 1 image, 2 video, 3 audio, where they cannot be detected.
        tensors: the inputs passed to generate(), for methods that distort pixels or audio features: by the time a custom
            method runs, generate() has replaced pixels by their encoding.
        spans: each row's spans from ``Adapter.spans(inputs)``; without them layouts (grids, seconds) may be unknown,
            since generate() has consumed the tensors that determine them.
        earlier: each row's half-open runs of positions that answers of earlier turns hold, a group of the meter's own.
        prompts: each row's prompt from ``Adapter.prepare``, for strategies that cut views out of the original media.
        details: True: the relevance of every emitted token (``Step.relevance``) under any strategy. Greedy and exact LIME
            compute it themselves, exact LIME under its own forward; otherwise it is the unchanged model's, under
            ``ATTN_LRP``, at the cost of one uncached forward and one backward per token. None: only where the strategy
            computes it. False: never.
        on_step: called with (row, Step) as each token is chosen.
        top_logprobs: number of most likely tokens in ``Step.top_logprobs``, under the distribution that was chosen from.
        parent_model: the model (or its Adapter) whose generate() is called, where that delegates to an inner language
            model (BLIP-2, InstructBLIP), which does not know the image's positions.
        return_cache: with ``return_dict_in_generate``, return ``past_key_values`` for the next turn. Methods without such
            a cache fill one at the end (one prefill, and one forward for the answer); False skips this.

    With custom decoding, generate() does not pass on some of its arguments, so they cannot be refused here:
    ``assistant_model``, ``assistant_tokenizer``, ``tokenizer`` (pass ``processor``), ``synced_gpus`` and ``streamer``; with
    ``cache_implementation="paged"`` it never calls a custom method. :func:`limelight.generate` refuses or supports them all.
    """
    pending = _PendingStreamer(streamer)
    details = _details_option(details)

    def decoding_method(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        pending.over = True
        with ending(model_kwargs.pop("streamer", None) or streamer) as sink:
            check_arguments(
                {n: model_kwargs.pop(n, None) for n in ("assistant_model", "assistant_tokenizer", "synced_gpus")}
            )
            adapter = wrap(model, processor) if parent_model is None else inside(wrap(parent_model, processor), model)
            if stop_strings is not None:
                stopping_criteria = _with_stop_strings(stopping_criteria, stop_strings, tokenizer or adapter.tokenizer)
            rows = input_ids.shape[0]
            seeds = None if seed is None else [seed + r for r in range(rows)] if isinstance(seed, int) else list(seed)
            sampler = TokenSampler(logits_processor, sample=bool(generation_config.do_sample), seeds=seeds)
            context = _context(
                adapter, input_ids, model_kwargs, sampler, generation_config, modality_ids, details is not False,
                stopping_criteria, tensors=tensors or {}, spans=_expanded(spans, rows), earlier=_expanded(earlier, rows),
                relevance=details is True, prompts=prompts,
            )  # fmt: skip
            return decode(
                strategy,
                context,
                stopping_criteria,
                sink,
                on_step,
                return_cache=return_cache,
                top_logprobs=top_logprobs,
            )

    weakref.finalize(decoding_method, pending.end).atexit = False
    return decoding_method


def _details_option(details: Any) -> bool | None:
    """Convert to True, False or None; 0 and 1 count as booleans.

    Raises:
        SettingError: anything else.
    """
    if details is None:
        return None
    if type(details).__name__ in ("bool", "bool_", "int") and details in (0, 1):
        return bool(details)
    raise SettingError(f"expected True, False or None for relevance, got {details!r}", hint="relevance=True")


class _PendingStreamer:
    """A bound streamer whose generate() may fail before decoding: it is ended when the decoding method is freed."""

    def __init__(self, streamer: Any) -> None:
        self.streamer, self.over = streamer, streamer is None

    def end(self) -> None:
        if not self.over:
            self.over = True
            self.streamer.end()


def _expanded(spans: Sequence[Any] | None, rows: int) -> Sequence[Any] | None:
    """Return one entry per row: num_return_sequences repeats each prompt."""
    if spans is None or len(spans) == rows:
        return spans
    if not spans or rows % len(spans):
        raise SettingError(
            f"got spans of {len(spans)} rows for a batch of {rows}", hint="pass one tuple of spans per row"
        )
    return [row for row in spans for _ in range(rows // len(spans))]


def _context(
    adapter: Adapter,
    ids: Tensor,
    kwargs: dict[str, Any],
    sampler: TokenSampler,
    config: Any,
    modality: Tensor | None,
    details: bool,
    stopping: Any,
    **bound: Any,
) -> GenerationContext:
    check_config(config)
    check_shards(adapter.model)
    if adapter.encoder is not None:
        check_encoder_decoder(config, adapter.model)
    if adapter.model.training:
        raise UnsupportedError("the model is in training mode (dropout is active)", hint="call model.eval()")
    past = past_of(kwargs, adapter)
    partial = is_partial(ids, kwargs, config, past)
    known = {adapter.names.ids: ids, **{k: v for k, v in kwargs.items() if v is not None}}
    known.pop("past_key_values", None)
    if modality is not None:
        if modality.shape[0] != ids.shape[0] and ids.shape[0] % modality.shape[0] == 0:
            modality = modality.repeat_interleave(ids.shape[0] // modality.shape[0], dim=0)
        known["modality_ids"] = modality
    where = torch.zeros_like(ids) if partial else adapter.modality_ids(known).to(ids.device)
    if where.shape != ids.shape:
        raise PromptError(
            f"modality_ids {tuple(where.shape)} do not match the prompt {tuple(ids.shape)}",
            hint="pass one entry per prompt position",
        )
    mask = kwargs.get(adapter.names.mask)
    mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else torch.ones_like(ids, dtype=torch.bool)
    if past:  # the model continues with the inputs it was given
        context = GenerationContext(
            adapter, ids, kwargs, where, mask[:, -ids.shape[1] :], sampler, config, details, stopping, **bound
        )
        return continued(context, partial=partial)
    missing = {k: v for k, v in adapter.complete({**kwargs, adapter.names.ids: ids}).items() if kwargs.get(k) is None}
    missing.pop(adapter.names.ids, None)
    if "mm_token_type_ids" in missing and kwargs.get("position_ids") is not None and bool((where > 0).any()):
        raise PromptError(
            "generate() was called without mm_token_type_ids and has computed positions as if all tokens were text",
            hint="pass everything the processor returned to generate()",
        )
    kwargs = {k: v for k, v in {**kwargs, **missing}.items() if k != adapter.names.ids}
    return GenerationContext(adapter, ids, kwargs, where, mask, sampler, config, details, stopping, **bound)


def _with_stop_strings(criteria: Any, stop_strings: str | Sequence[str], tokenizer: Any) -> Any:
    if tokenizer is None:
        raise SettingError(
            "stop_strings need the tokenizer", hint="custom_generate(strategy, processor=processor, ...)"
        )
    strings = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
    return StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer=tokenizer, stop_strings=strings)])


@torch.no_grad()
def decode(
    strategy: Strategy,
    context: GenerationContext,
    stopping: Any,
    streamer: Any = None,
    on_step: OnStep | None = None,
    *,
    return_cache: bool = False,
    top_logprobs: int = 0,
) -> Any:
    """Decode token by token until every row has stopped. Returns ids ``[B, T + n]``, or a :class:`GroundedOutput`.

    With ``num_beams`` it is a beam search (:mod:`limelight.decoding.beam_search`).

    ``return_cache``: the output contains generate()'s cache as plain decoding leaves it; a cache passed by the caller is
    always filled.

    Raises:
        NotFiniteError: a strategy returned NaN logits.
        UnsupportedError: beams that this strategy or call does not support.
    """
    config, ids = context.config, context.ids
    if (config.num_beams or 1) > 1:
        refuse_beams(strategy, context, streamer)
        check_media(strategy, context)
        return search(strategy, context, stopping, on_step, top_logprobs)
    pad = compat.pad_token(config)
    has_eos = any(hasattr(c, "eos_token_id") for c in stopping)
    keep = bool(config.return_dict_in_generate)
    scores: list[Tensor] = []
    raw: list[Tensor] = []
    steps: list[list[Step]] = [[] for _ in range(ids.shape[0])]
    unfinished = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
    tokens: Tensor | None = None
    capabilities = capabilities_of(strategy)
    check_media(strategy, context)
    own = OwnRelevance(context) if context.relevance else None
    if own is not None:
        context.require_prompt()
    with _streaming(streamer, ids), context.adapter.listed():
        with context.adapter.exclusive():
            if capabilities.gradients:
                require_gradients(context.adapter)
            session = strategy.session(context)
            checked = checked_stream(context) if context.past and not capabilities.continues_cache else None
        while bool(unfinished.any()):
            with context.adapter.exclusive():  # released after each token, so that several threads take turns
                step_output = session.next(tokens)
            if bool(torch.isnan(step_output.logits).any()) and not getattr(config, "remove_invalid_values", False):
                raise NotFiniteError(
                    f"{strategy.name} produced NaN logits at token {len(steps[0])}",
                    hint="try float32, or a smaller lr / alpha",
                )
            with context.adapter.exclusive():  # guidance runs the model
                processed = step_output.logits
                if not step_output.decided:
                    processed = context.sampler.scores(ids, processed)
                    processed = context.sampler.with_fallback(ids, processed, step_output.unchanged)
            barred = torch.isneginf(processed.amax(dim=-1)) & unfinished
            if bool(barred.any()) and not step_output.decided:
                raise SettingError(
                    f"no token is allowed at token {len(steps[0])} of row {int(barred.nonzero()[0])}: {strategy.name}'s "
                    "plausibility cut and the logits processors exclude all of them",
                    hint="lower beta (the cut), or relax settings that exclude tokens (min_new_tokens, bad_words_ids, ...)",
                )
            tokens = context.sampler.pick(processed)
            if has_eos and pad is not None:
                tokens = torch.where(unfinished, tokens, pad.to(tokens.device))
            if keep and config.output_scores:
                scores.append(processed)
            if keep and config.output_logits:
                raw.append(step_output.logits)
            for row in unfinished.nonzero()[:, 0].tolist():
                with context.adapter.exclusive():
                    detail = step_output.detail(row, int(tokens[row]))
                    if own is not None and detail.relevance is None:
                        found = own.of(row, int(tokens[row]), ids)
                        detail = replace(detail, relevance=found, shares=found.shares())
                    step = build_step(context.adapter, detail, processed[row], int(tokens[row]), top_logprobs)
                steps[row].append(step)
                if on_step is not None:
                    on_step(row, step)
            ids = torch.cat([ids, tokens[:, None]], dim=-1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            criteria = _untimed(stopping) if step_output.decided else stopping
            unfinished = unfinished & ~criteria(ids, tuple(scores) if scores else None)
            if step_output.last is not None:
                unfinished = unfinished & ~step_output.last
        cache = _cache(session, context, ids, return_cache and keep, checked)
    if not keep:
        return ids
    return GroundedOutput(
        sequences=ids,
        scores=tuple(scores) if scores else None,
        logits=tuple(raw) if raw else None,
        past_key_values=cache,
        steps=tuple(tuple(s) for s in steps),
    )


def _untimed(criteria: Any) -> StoppingCriteriaList:
    """Drop the time limit, which a session that chooses tokens itself has already applied."""
    return StoppingCriteriaList(c for c in criteria if not isinstance(c, MaxTimeCriteria))


def _cache(session: Any, context: GenerationContext, ids: Tensor, wanted: bool, checked: Any) -> Any:
    """Return generate()'s cache as plain decoding would leave it, or None if it is not needed."""
    if not wanted and not compat.is_user_cache(context.kwargs.get("past_key_values")):
        return None
    with context.adapter.exclusive():
        own = session.cache() if hasattr(session, "cache") else None
        return cache_after(context, ids, checked) if own is None else own


class _EndOnce:
    """Wraps a streamer so that ``end`` may be called more than once."""

    def __init__(self, streamer: Any) -> None:
        self.streamer, self.ended = streamer, False

    @property
    def next_tokens_are_prompt(self) -> bool:
        return bool(getattr(self.streamer, "next_tokens_are_prompt", False))

    def put(self, value: Tensor) -> None:
        self.streamer.put(value)

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            self.streamer.end()


@contextmanager
def ending(streamer: Any) -> Iterator[Any]:
    """End the streamer if the block fails, so that no consumer hangs; yields a wrapper that can be ended twice."""
    sink = streamer if streamer is None or isinstance(streamer, _EndOnce) else _EndOnce(streamer)
    try:
        yield sink
    except BaseException:
        if sink is not None:
            sink.end()
        raise


@contextmanager
def _streaming(streamer: Any, ids: Tensor) -> Iterator[None]:
    """Put the prompt into the streamer if generate() has not, and always end it."""
    if streamer is None:
        yield
        return
    if getattr(streamer, "next_tokens_are_prompt", False):
        streamer.put(ids.cpu())
    try:
        yield
    finally:
        streamer.end()
