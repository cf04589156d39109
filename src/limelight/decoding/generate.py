"""``limelight.generate`` and ``limelight.generate_many``: messages in, Generations out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limelight.decoding.answer import answer, check_options, prompt_of
from limelight.decoding.loop import OnStep, ending
from limelight.decoding.methods.greedy import Greedy
from limelight.decoding.methods.meter import meter as metered
from limelight.decoding.registry import strategy as by_name
from limelight.decoding.strategy import Strategy
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
        on_step: called with (0, Step) as each token is chosen.
        top_logprobs: how many of the likeliest tokens ``Step.top_logprobs`` tells.
        generation_kwargs: as for ``model.generate``: max_new_tokens (by default what ``model.generation_config`` says of
            lengths, else 64), do_sample (by default False, whatever that says), temperature, repetition_penalty ...
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
        check_options(adapter, generation_kwargs)
        chosen = chosen_strategy(strategy, meter=meter)
        prompt = prompt_of(adapter, messages, media)
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
    """Answer several requests in one batch; each answer is what :func:`limelight.generate` would give alone.

    Args:
        requests: messages, Prompts from ``Adapter.prepare``, or a processor's tensors of one row each.
        strategy, relevance, meter, stop_strings, top_logprobs: as for :func:`limelight.generate`.
        seeds: one seed a request, for sampling (an integer: the requests take ``seeds, seeds + 1, ...``).
        on_step: called with (index of the request, Step) as each token is chosen.

    Raises:
        SettingError: no requests.
        UnsupportedError: these prompts cannot share a batch (pictures of unequal shape); ask one by one.
    """
    streamer = generation_kwargs.pop("streamer", None)
    with ending(streamer):
        if streamer is not None:
            raise UnsupportedError("a streamer hears one answer", hint="call limelight.generate for each request")
        if not requests:
            raise SettingError("no requests", hint="pass at least one list of messages")
        adapter = wrap(model, processor)
        check_options(adapter, generation_kwargs)
    return answer(
        adapter, [prompt_of(adapter, r) for r in requests], chosen_strategy(strategy, meter=meter), relevance=relevance,
        seeds=seeds, stop_strings=stop_strings, on_step=on_step, top_logprobs=top_logprobs, **generation_kwargs,
    )  # fmt: skip


def chosen_strategy(strategy: Strategy | str | None, *, meter: bool = False) -> Strategy:
    """A strategy given as itself, by name, or not at all (greedy); with the grounding meter beside it where wanted."""
    chosen = by_name(strategy) if isinstance(strategy, str) else strategy or Greedy()
    return metered(chosen) if meter else chosen
