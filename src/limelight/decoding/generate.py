"""``limelight.generate`` and ``limelight.generate_many``: decode chat messages into Generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limelight.decoding.answer import answer, check_options, prompt_of
from limelight.decoding.loop import ending
from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.methods.meter import meter as metered
from limelight.decoding.registry import strategy as by_name
from limelight.decoding.steps import OnStep
from limelight.decoding.strategy import Strategy, capabilities_of
from limelight.errors import SettingError, UnsupportedError
from limelight.models.adapter import wrap
from limelight.types import Generation, Prompt


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
    top_logprobs: int = 0,
    **generation_kwargs: Any,
) -> Generation:
    """Answer ``messages`` with a decoding strategy.

    Args:
        model: a transformers model, or an :class:`Adapter` (then ``processor`` may be None or left out).
        messages: the chat format of Hugging Face or OpenAI, a user message as text (with ``media``), a :class:`Prompt`, or
            a processor's tensors (with ``modality_ids`` where they cannot be detected). Without media all is text.
        media: ``{"image": file or image or list of them, "audio": ..., "video": ...}``, or any value whose kind can be
            detected: files, PIL images, ``(samples, rate)``, bytes; see :mod:`limelight.media.arguments`.
        strategy: a Strategy, a name from ``limelight strategies``, or None: the unchanged model.
        relevance: ``Step.relevance`` and ``Step.shares`` of every emitted token. None: only where the strategy computes
            them (greedy and exact LIME). True: always; other strategies' tokens get the unchanged model's relevance under
            ``ATTN_LRP``, at the cost of one uncached forward and one backward per token (``decoding.explain.explained``
            adds it to a finished answer in one forward). False: never.
        meter: run the grounding meter beside the strategy: ``Step.contributions``, candidates and flags during generation
            (``on_step``), at the cost of one more cached row; see :mod:`limelight.decoding.methods.meter`.
        seed: for sampling (``do_sample=True``).
        on_step: called with (0, Step) as each token is chosen.
        top_logprobs: number of most likely tokens in ``Step.top_logprobs``.
        generation_kwargs: as for ``model.generate``: max_new_tokens (by default the lengths in
            ``model.generation_config``, else 64), do_sample (by default False, regardless of ``model.generation_config``),
            temperature, repetition_penalty, num_beams (with strategies that support beam search) ... Options that no
            strategy supports (assistants, other decoding modes) are refused.

    Returns:
        Generation with text, ids and one :class:`Step` per token.

    Raises:
        PromptError, MediaError, UnsupportedError, SettingError: see :mod:`limelight.errors`.

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
                    f"expected a processor as the second argument, got {type(processor).__name__}",
                    hint="generate(model, processor, messages), or generate(adapter, messages=...)",
                )
            processor, messages = None, processor
        adapter = wrap(model, processor)
        check_options(adapter, generation_kwargs)
        chosen = chosen_strategy(strategy, meter=meter)
        prompt = prompt_of(adapter, messages, media, long_audio=capabilities_of(chosen).long_audio)
        return answer(
            adapter, [prompt], chosen, relevance=relevance, seeds=seed, stop_strings=stop_strings, streamer=sink,
            on_step=on_step, top_logprobs=top_logprobs, **generation_kwargs,
        )[0]  # fmt: skip


def generate_many(
    model: Any,
    processor: Any = None,
    requests: Sequence[Any] = (),
    *,
    strategy: Strategy | str | None = None,
    relevance: bool | None = False,
    meter: bool = False,
    seeds: int | Sequence[int] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    on_step: OnStep | None = None,
    top_logprobs: int = 0,
    **generation_kwargs: Any,
) -> list[Generation]:
    """Answer several requests in one batch; each answer equals that of :func:`limelight.generate` alone.

    Args:
        requests: messages, Prompts from ``Adapter.prepare``, or a processor's tensors of one row each.
        strategy, relevance, meter, stop_strings, top_logprobs: as for :func:`limelight.generate`.
        seeds: one seed per request, for sampling (an integer: the requests use ``seeds, seeds + 1, ...``).
        on_step: called with (index of the request, Step) as each token is chosen.

    Raises:
        SettingError: no requests.
        UnsupportedError: the prompts cannot share a batch (images of different shapes); run them one by one.
    """
    streamer = generation_kwargs.pop("streamer", None)
    with ending(streamer):
        if streamer is not None:
            raise UnsupportedError(
                "a streamer supports a single request", hint="call limelight.generate for each request"
            )
        if not requests:
            raise SettingError("no requests", hint="pass at least one list of messages")
        adapter = wrap(model, processor)
        check_options(adapter, generation_kwargs)
    chosen = chosen_strategy(strategy, meter=meter)
    long_audio = capabilities_of(chosen).long_audio
    return answer(
        adapter, [prompt_of(adapter, r, long_audio=long_audio) for r in requests], chosen, relevance=relevance,
        seeds=seeds, stop_strings=stop_strings, on_step=on_step, top_logprobs=top_logprobs, **generation_kwargs,
    )  # fmt: skip


def chosen_strategy(strategy: Strategy | str | None, *, meter: bool = False) -> Strategy:
    """Resolve a strategy given as an object, by name, or as None (greedy); optionally with the grounding meter beside it."""
    chosen = by_name(strategy) if isinstance(strategy, str) else Greedy() if strategy is None else strategy
    capabilities_of(chosen)  # raises if it is not a strategy
    return metered(chosen) if meter else chosen
