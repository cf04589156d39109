"""``limelight.generate``: messages in, a Generation out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from limelight.decoding.generation_options import check_arguments, one_answer, stop_strings_of
from limelight.decoding.loop import GroundedOutput, OnStep, custom_generate, ending
from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.methods.meter import meter as metered
from limelight.decoding.registry import strategy as by_name
from limelight.decoding.strategy import Strategy
from limelight.errors import PromptError, SettingError
from limelight.models.adapter import Adapter, wrap
from limelight.types import Generation, Prompt, Step


def generate(
    model: Any,
    processor: Any = None,
    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any] | str | Prompt = "",
    *,
    media: Any = None,
    strategy: Strategy | str | None = None,
    relevance: bool | None = None,
    meter: bool = False,
    streamer: Any = None,
    stop_strings: str | Sequence[str] | None = None,
    seed: int | None = None,
    on_step: OnStep | None = None,
    **generation_kwargs: Any,
) -> Generation:
    """Answer ``messages`` with a decoding strategy.

    Args:
        model: a transformers model, or an :class:`Adapter` (then ``processor`` may be None or left out).
        messages: the chat format of Hugging Face or OpenAI, one user's words (with ``media``), a :class:`Prompt`, or a
            processor's tensors (with ``modality_ids`` where they cannot be told). Without media all is text.
        media: ``{"image": file or picture or list of them, "audio": ..., "video": ...}``, or anything that says what it is:
            files, PIL images, ``(samples, rate)``, bytes; see :mod:`limelight.media.arguments`.
        strategy: a Strategy, a name from ``limelight strategies``, or None: the model as it is.
        relevance: ``Step.relevance`` and ``Step.shares`` of every emitted token. None: where the strategy computes them
            itself (greedy and exact LIME). True: always; other strategies' tokens get the unchanged model's relevance under
            ``ATTN_LRP``, for one uncached forward and one backward a token (``decoding.explain.explained`` adds it
            to a finished answer in one forward). False: never.
        meter: run the grounding meter beside the strategy: ``Step.contributions``, candidates and flags as it is generated
            (``on_step``), at the price of one more cached row; see :mod:`limelight.decoding.methods.meter`.
        seed: for sampling (``do_sample=True``).
        generation_kwargs: as for ``model.generate``: max_new_tokens, do_sample, temperature, repetition_penalty ...
            What no strategy acts on (beams, assistants, other decoding modes) is refused.

    Returns:
        Generation with text, ids and a :class:`Step` a token.

    Raises:
        PromptError, MediaError, UnsupportedError, SettingError: see the tree in :mod:`limelight.errors`.

    Example:
        >>> import limelight
        >>> adapter = limelight.load("demo-vision")
        >>> answer = limelight.generate(adapter, messages="What is in the picture?", media={"image": "photo.png"},
        ...                             strategy=limelight.lime(), max_new_tokens=20)  # doctest: +SKIP
    """
    with ending(streamer) as sink:
        if isinstance(processor, (str, list, tuple, Prompt)):  # generate(adapter, "What is this?")
            if messages:
                raise SettingError(
                    f"expected a processor in second place, got {type(processor).__name__}",
                    hint="generate(model, processor, messages), or generate(adapter, messages=...)",
                )
            processor, messages = None, processor
        adapter = wrap(model, processor)
        check_arguments(generation_kwargs, adapter.model)
        one_answer(generation_kwargs)
        chosen = by_name(strategy) if isinstance(strategy, str) else strategy or Greedy()
        if meter:
            chosen = metered(chosen)
        prompt = prompt_of(adapter, messages, media)
        tensors = {k: v for k, v in prompt.tensors.items() if k != "modality_ids"}
        fn = custom_generate(
            chosen,
            processor=adapter.processor,
            streamer=sink,
            stop_strings=stop_strings_of({**generation_kwargs, "stop_strings": stop_strings}, adapter.model),
            tokenizer=generation_kwargs.get("tokenizer"),
            seed=seed,
            media=prompt.media,
            modality_ids=prompt.tensors.get("modality_ids"),
            tensors=tensors,
            spans=[prompt.spans] if prompt.spans else None,
            details=relevance,
            on_step=on_step,
            whole=adapter,
            return_cache=False,
        )
        output: GroundedOutput = adapter.model.generate(
            **tensors, custom_generate=fn, **settings_of(generation_kwargs, adapter.model)
        )
    return answer_of(adapter, chosen, prompt, (output.steps or ((),))[0])


def prompt_of(adapter: Adapter, messages: Any, media: Any = None) -> Prompt:
    """A Prompt from messages with media, from a processor's tensors of one row, or as it is.

    Raises:
        PromptError: several requests or rows at once; see ``Adapter.prepare``.
        SettingError: media beside a Prompt or tensors.
    """
    tensors = isinstance(messages, Mapping) and "content" not in messages
    if not tensors and not isinstance(messages, Prompt):
        prompt: Prompt = adapter.prepare(messages, media)
        return prompt
    if media is not None:
        raise SettingError("media stand beside messages; a Prompt or tensors hold theirs", hint="leave media out")
    if isinstance(messages, Prompt):
        return messages
    found = adapter.complete(messages)
    ids = found.get("input_ids")
    if ids is None:
        raise PromptError(
            f"expected messages, a Prompt or tensors with input_ids, got {sorted(map(str, messages))[:9]}",
            hint="pass input_ids beside inputs_embeds; they are what generate() counts and returns",
        )
    if ids.shape[0] != 1:
        raise PromptError(
            f"expected one row, got {ids.shape[0]}",
            hint="limelight.generate_many(model, processor, requests) answers several; or model.generate with custom_generate",
        )
    return Prompt(found, adapter.words(found), adapter.spans(found))


def answer_of(adapter: Adapter, chosen: Strategy, prompt: Prompt, steps: tuple[Step, ...]) -> Generation:
    """One row's steps as a Generation."""
    ids = tuple(s.token for s in steps)
    text = adapter.tokenizer.decode(list(ids), skip_special_tokens=True) if adapter.tokenizer is not None else ""
    return Generation(str(text).strip(), ids, steps, prompt, chosen.name, chosen.settings())


def settings_of(given: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
    """The caller's settings over greedy defaults; a whole generation_config of the caller's stands as it is.

    Stop strings and their tokenizer are left out: they are bound to the decoding method.
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
    if given.get("max_length") is None:
        defaults["max_new_tokens"] = 64
    if not given.get("do_sample"):  # a checkpoint's sampling defaults would only cause warnings
        defaults |= {"temperature": None, "top_p": None, "top_k": None}
    return {**defaults, **given, "return_dict_in_generate": True}
