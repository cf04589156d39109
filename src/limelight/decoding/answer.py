"""Decoding of prepared prompts: the code path shared by ``generate``, the server, the command line and the benchmarks.

Prompts are collated into one left-padded batch, a decoding method is bound to it, and ``model.generate`` is run with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import GenerationMixin

from limelight.decoding.collate import batch_of, shift_spans
from limelight.decoding.dual import flag_of
from limelight.decoding.generation_options import check_arguments, check_whisper_options, one_answer, stop_strings_of
from limelight.decoding.loop import GroundedOutput, custom_generate, ending
from limelight.decoding.steps import OnStep
from limelight.decoding.strategy import Runs, Strategy, capabilities_of
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.answers import earlier_answers
from limelight.models.detect import special_ids
from limelight.types import Generation, Prompt, Step


def answer(
    adapter: Adapter,
    prompts: Sequence[Prompt],
    strategy: Strategy,
    *,
    relevance: bool | None = False,
    seeds: int | Sequence[int] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    streamer: Any = None,
    on_step: OnStep | None = None,
    top_logprobs: int = 0,
    **generation_kwargs: Any,
) -> list[Generation]:
    """Decode the prompts in one batch and return one Generation per prompt.

    Args:
        prompts: from ``Adapter.prepare`` or :func:`prompt_of`.
        relevance: ``Step.relevance``: True: for every token; None: only where the strategy computes it; False: never.
        seeds: for sampling, one per prompt (an integer ``s``: ``s, s + 1, ...``).
        streamer: a transformers streamer, for a single prompt; it is always ended, also on errors.
        on_step: called with (index of the prompt, Step) as each token is chosen.
        top_logprobs: number of most likely tokens reported in each step.
        generation_kwargs: as for ``model.generate``.

    Raises:
        SettingError: no prompts. UnsupportedError: an option that no strategy supports; prompts that cannot share a batch.
        LimelightError: see the strategy.
    """
    with ending(streamer) as sink:
        if not prompts:
            raise SettingError("no requests", hint="pass at least one list of messages")
        if streamer is not None and len(prompts) > 1:
            raise UnsupportedError(
                "a streamer supports a single request", hint="call limelight.generate for each request"
            )
        check_options(adapter, generation_kwargs)
        tensors, pads = batch_of(adapter, prompts)
        if adapter.encoder is not None:
            _require_room(adapter, max(len(p.tokens) for p in prompts), generation_kwargs.get("max_new_tokens"))
        modality_ids = tensors.pop("modality_ids", None)
        method = custom_generate(
            strategy,
            processor=adapter.processor,
            streamer=sink,
            stop_strings=stop_strings_of({**generation_kwargs, "stop_strings": stop_strings}, adapter.model),
            tokenizer=generation_kwargs.get("tokenizer"),
            seed=seeds,
            modality_ids=modality_ids,
            tensors=tensors,
            spans=[shift_spans(p.spans, pad) for p, pad in zip(prompts, pads, strict=True)]
            if _all_spans(prompts)
            else None,
            earlier=_earlier(adapter, prompts, pads) if capabilities_of(strategy).meter else None,
            prompts=prompts,
            details=relevance,
            on_step=on_step,
            top_logprobs=top_logprobs,
            parent_model=adapter,
            return_cache=False,
        )
        output: GroundedOutput = generate_of(adapter)(
            **tensors, custom_generate=method, **generation_settings(generation_kwargs, adapter.model)
        )
    steps = output.steps or ((),) * len(prompts)
    return [generation_of(adapter, strategy, prompt, row) for prompt, row in zip(prompts, steps, strict=True)]


def _require_room(adapter: Adapter, prompt: int, asked: Any) -> None:
    """Raise SettingError if prompt and answer may exceed the decoder's positions."""
    most = None if adapter.encoder is None else adapter.encoder.most
    if most is not None and isinstance(asked, int) and prompt + asked > most:
        raise SettingError(
            f"max_new_tokens={asked} after a prompt of {prompt} tokens exceeds the {most} positions of the decoder of "
            f"{type(adapter.model).__name__}",
            hint=f"use max_new_tokens={max(most - prompt, 1)} or less",
        )


def generate_of(adapter: Adapter) -> Callable[..., Any]:
    """transformers' ``generate`` of the model; of an encoder-decoder the plain one, which takes ids of the decoder (Whisper's
    own makes them itself, and cuts long sounds)."""
    if adapter.encoder is None:
        return adapter.model.generate  # type: ignore[no-any-return]
    return partial(GenerationMixin.generate, adapter.model)


def _earlier(adapter: Adapter, prompts: Sequence[Prompt], pads: Sequence[int]) -> list[Runs]:
    """Return the positions that answers of earlier turns hold in each row of the batch; none where a prompt is not made
    from messages."""
    found = [
        earlier_answers(adapter, p.turns, p) if any(t["role"] == "assistant" for t in p.turns) else () for p in prompts
    ]
    return [tuple((pad + a, pad + b) for a, b in runs) for runs, pad in zip(found, pads, strict=True)]


def _all_spans(prompts: Sequence[Prompt]) -> bool:
    return all(p.spans for p in prompts)


def check_options(adapter: Adapter, generation_kwargs: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for options of ``generate`` that no strategy supports, and for several answers per prompt."""
    check_arguments(generation_kwargs, adapter.model)
    one_answer(generation_kwargs, adapter.model)
    if adapter.family.name == "whisper":
        check_whisper_options(generation_kwargs)


def prompt_of(adapter: Adapter, messages: Any, media: Any = None, *, long_audio: bool = False) -> Prompt:
    """Return a Prompt made from messages with media or from a processor's tensors (one row); a Prompt is returned as is.

    ``long_audio``: see :func:`limelight.models.prompts.prepare`.

    Raises:
        PromptError: several requests or rows at once; see ``Adapter.prepare``.
        SettingError: media given together with a Prompt or tensors.
    """
    tensors = isinstance(messages, Mapping) and "content" not in messages
    if not tensors and not isinstance(messages, Prompt):
        prompt: Prompt = adapter.prepare(messages, media, long_audio=long_audio)
        return prompt
    if media is not None:
        raise SettingError(
            "media can only be given with messages; a Prompt or tensors contain their own", hint="leave media out"
        )
    if isinstance(messages, Prompt):
        return messages
    found = adapter.complete(messages)
    ids = found.get(adapter.names.ids)
    if ids is None:
        raise PromptError(
            f"expected messages, a Prompt or tensors with {adapter.names.ids}, got {sorted(map(str, messages))[:9]}",
            hint="pass input_ids together with inputs_embeds; generate() counts and returns them",
        )
    if ids.shape[0] != 1:
        raise PromptError(
            f"expected one row, got {ids.shape[0]}",
            hint="use limelight.generate_many(model, processor, requests), or model.generate with custom_generate",
        )
    return Prompt(found, adapter.words(found), adapter.spans(found))


def generation_of(adapter: Adapter, strategy: Strategy, prompt: Prompt, steps: tuple[Step, ...]) -> Generation:
    """Build the Generation of one row from its steps."""
    ids = tuple(s.token for s in steps)
    text = adapter.tokenizer.decode(list(ids), skip_special_tokens=True) if adapter.tokenizer is not None else ""
    rule = flag_of(adapter, strategy) if any(s.grounding is not None for s in steps) else {}
    ended = bool(ids) and ids[-1] in end_markers(adapter)
    return Generation(str(text).strip(), ids, steps, prompt, strategy.name, strategy.settings(), rule, ended)


def end_markers(adapter: Adapter) -> frozenset[int]:
    """Return the token ids that are no part of an answer's text: those that end it, and special ones."""
    return end_tokens(adapter) | special_ids(adapter.tokenizer)


def end_tokens(adapter: Adapter) -> frozenset[int]:
    """Return the token ids that end an answer."""
    found = getattr(adapter.model.generation_config, "eos_token_id", None)
    return frozenset([found] if isinstance(found, int) else found or ())


def generation_settings(given: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
    """Merge the caller's settings with greedy defaults; a generation_config passed by the caller is used unchanged.

    Stop strings and their tokenizer are removed, because they are bound to the decoding method.
    """
    config = copy.deepcopy(given.get("generation_config"))
    given = {k: v for k, v in given.items() if k not in ("tokenizer", "stop_strings")}
    if getattr(getattr(model, "generation_config", None), "stop_strings", None) is not None:
        given["stop_strings"] = None
    if config is not None:
        config.disable_compile = config.return_dict_in_generate = True
        config.stop_strings = None
        return {**given, "generation_config": config}
    defaults: dict[str, Any] = {"do_sample": False, "disable_compile": True}
    own = getattr(model, "generation_config", None)
    lengths = (given.get("max_length"), getattr(own, "max_length", None), getattr(own, "max_new_tokens", None))
    if all(n is None for n in lengths):
        defaults["max_new_tokens"] = 64
    elif given.get("max_new_tokens") is not None:
        defaults["max_length"] = None  # the checkpoint's own limit (Whisper's 448) beside it would only cause a warning
    if not given.get("do_sample"):  # a checkpoint's sampling defaults would only cause warnings
        defaults |= {"temperature": None, "top_p": None, "top_k": None}
    return {**defaults, **given, "return_dict_in_generate": True}
