"""Intervene only after the thinking part: any strategy, kept back until a marker has been said.

Reasoning models think aloud first (``<think> ... </think>``) and answer then. Until the marker the model is left as it
is, at the price of plain decoding; then the strategy's session opens on prompt and thoughts together, as if both had
been read. Rows of a batch pass the marker each in its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from limelight.decoding.methods.greedy import GreedySession
from limelight.decoding.strategy import (
    Capabilities,
    Detail,
    GenerationContext,
    Session,
    StepOutput,
    Strategy,
    capabilities_of,
)
from limelight.errors import SettingError, UnsupportedError
from limelight.models.inputs.decoder_inputs import MODEL
from limelight.models.spans import grown
from limelight.thinking import MARKERS, THINKING

_TWO_WAY = ("paligemma",)


@dataclass(frozen=True)
class After:
    """``inner``, from the token behind ``marker`` on.

    Args:
        inner: any strategy.
        marker: a text such as ``</think>``, looked for in what has been generated; a token id; or ``"thinking"``: any of
            the texts that end thoughts (:data:`limelight.thinking.MARKERS`, by which benchmarks tell thoughts from answers).

    A prompt that ends with the marker (chat templates that switch thinking off write it there) counts as thought over.
    An answer in which the marker never comes is the model's own: every ``Step.intervened`` is False.
    Counters of the inner strategy (M3ID's, a decay) start at the marker.
    """

    inner: Strategy
    marker: str | int

    def __post_init__(self) -> None:
        whole = isinstance(self.marker, int) and not isinstance(self.marker, bool) and self.marker >= 0
        if not whole and not (isinstance(self.marker, str) and self.marker.strip()):
            raise SettingError(
                f"after: expected a text or a token id, got {self.marker!r}", hint="such as after='</think>'"
            )

        if not capabilities_of(self.inner).after:
            raise SettingError(
                f"{self.inner.name} cannot be kept back until a marker",
                hint="use it without after=, or another strategy",
            )

    @property
    def capabilities(self) -> Capabilities:
        """The inner strategy's, but that its session opens for all rows with the first marker, plain on the cache until then."""
        return replace(
            capabilities_of(self.inner), batches=False, second_prompt=True, continues_cache=True, meter="", after=False
        )

    @property
    def name(self) -> str:
        return self.inner.name

    def settings(self) -> dict[str, Any]:
        return {**self.inner.settings(), "after": self.marker}

    def session(self, context: GenerationContext) -> AfterSession:
        """Raises SettingError when the marker is a text and there is no tokenizer."""
        return AfterSession(self, context)


class AfterSession:
    def __init__(self, strategy: After, context: GenerationContext) -> None:
        self.strategy, self.context = strategy, context
        self.ends = ending_with(strategy.marker, context.adapter.tokenizer)
        self.said: list[list[int]] = [[] for _ in range(context.ids.shape[0])]
        self.thinking = [not self.ends(ids[m].tolist(), True) for ids, m in zip(context.ids, context.mask, strict=True)]
        self.plain = GreedySession(context)
        self.inner: Session | None = None

    def next(self, tokens: Tensor | None) -> StepOutput:
        for row, token in enumerate([] if tokens is None else tokens.tolist()):
            self.said[row].append(token)
            self.thinking[row] = self.thinking[row] and not self.ends(self.said[row], False)
        thinking = list(self.thinking)
        if not any(thinking):
            return self._inner(tokens)
        plain = self.plain.next(tokens)
        if all(thinking):
            return plain
        inner = self._inner(tokens)
        where = torch.tensor(thinking, device=inner.logits.device)[:, None]
        logits = torch.where(where, plain.logits.to(inner.logits), inner.logits)

        def explain(row: int, token: int) -> Detail:
            return (plain if thinking[row] else inner).detail(row, token)

        last = None if inner.last is None else inner.last & ~where[:, 0].to(inner.last.device)
        return StepOutput(logits, explain=explain, last=last)

    def cache(self) -> Any:
        """The plain stream's, brought up to what has been said, unless the inner session keeps one of its own."""
        if self.inner is not None and not any(self.thinking) and hasattr(self.inner, "cache"):
            found = self.inner.cache()
            if found is not None:
                return found
        stream = self.plain.stream
        if stream.output is None:
            return None
        missing = torch.tensor(self.said, device=stream.ids.device)[
            :, stream.ids.shape[1] - self.context.ids.shape[1] :
        ]
        if missing.shape[1]:
            stream.extend(missing)
        return stream.cache

    def _inner(self, tokens: Tensor | None) -> StepOutput:
        """The strategy's own step output, once a row is past the marker."""
        if self.inner is not None:
            return self.inner.next(tokens)
        untouched = tokens is None and not any(self.thinking)  # else the prompt's own cache is the plain stream's
        self.inner = self.strategy.inner.session(self.context if untouched else extended(self.context, self.said))
        return self.inner.next(None)


def ending_with(marker: str | int, tokenizer: Any) -> Callable[[Sequence[int], bool], bool]:
    """(token ids, blanks allowed behind) -> whether they end with the marker; it may share its last token with others."""
    if isinstance(marker, int):
        if tokenizer is None:
            return lambda ids, loose: bool(ids) and ids[-1] == marker

        def by_id(ids: Sequence[int], loose: bool) -> bool:
            if not loose or marker not in ids:
                return bool(ids) and ids[-1] == marker
            behind = len(ids) - 1 - list(reversed(ids)).index(marker)
            return not str(tokenizer.decode(list(ids[behind + 1 :]), skip_special_tokens=False)).strip()

        return by_id
    if tokenizer is None:
        raise SettingError(
            f"after={marker!r} is a text, and there is no tokenizer to read it with",
            hint="custom_generate(strategy, processor=processor), or give the token id",
        )
    texts = MARKERS.closings if marker == THINKING else (marker,)
    window = max(len(m.encode()) for m in texts) + 8

    def by_text(ids: Sequence[int], loose: bool) -> bool:
        text = str(tokenizer.decode(list(ids[-window:]), skip_special_tokens=False))
        if loose:
            return text.rstrip().endswith(tuple(m.strip() for m in texts))
        before = str(tokenizer.decode(list(ids[-window:-1]), skip_special_tokens=False)) if len(ids) > 1 else ""
        return any(text.count(m) > before.count(m) for m in texts)

    return by_text


def extended(context: GenerationContext, said: Sequence[Sequence[int]]) -> GenerationContext:
    """The context of a prompt that goes on with ``said`` (as many tokens in every row), with a cache of its own.

    Raises:
        UnsupportedError: an input whose axes nobody has declared; several answers per prompt;
            a model whose whole prompt sees itself both ways.
    """
    context.require_prompt()
    n = len(said[0])
    if context.adapter.model.config.model_type in _TWO_WAY:
        raise UnsupportedError(
            f"{type(context.adapter.model).__name__} reads its prompt both ways, so thoughts cannot be made part of it",
            hint="use the strategy without after=",
        )
    new = torch.tensor([list(s) for s in said], dtype=context.ids.dtype, device=context.ids.device).reshape(
        len(said), n
    )
    ids = torch.cat([context.ids, new], dim=1)
    given = {k: v for k, v in context.kwargs.items() if k != "past_key_values"}
    embeds = given.pop("inputs_embeds", None)
    kwargs = MODEL.append(given, n)
    if embeds is not None:
        kwargs["inputs_embeds"] = torch.cat(
            [embeds, context.adapter.embed(new)[..., : embeds.shape[-1]].to(embeds)], dim=1
        )
    prepared: Any = context.kwargs.get("past_key_values")
    if type(prepared) is DynamicCache:  # not every model makes its cache itself
        kwargs["past_key_values"] = DynamicCache(config=context.adapter.model.config.get_text_config(decoder=True))
    tensors = dict(context.tensors)
    before = tensors.get("input_ids")
    if isinstance(before, Tensor):
        if before.shape[0] != ids.shape[0]:
            raise UnsupportedError(
                f"{ids.shape[0]} answers to {before.shape[0]} prompts cannot wait for a marker each",
                hint="num_return_sequences=1, once a seed",
            )
        tensors["input_ids"] = ids
    length = ids.shape[1]
    return replace(
        context,
        past=0,
        resume=None,
        ids=ids,
        kwargs=kwargs,
        modality_ids=torch.nn.functional.pad(context.modality_ids, (0, n)),
        mask=torch.nn.functional.pad(context.mask, (0, n), value=True),
        tensors=tensors,
        spans=None if context.spans is None else [grown(spans, length) for spans in context.spans],
    )


def after(marker: str | int, strategy: Strategy) -> After:
    """``strategy`` from the token behind ``marker`` on; see :class:`After`.

    Example:
        >>> import limelight
        >>> limelight.after("</think>", limelight.lime_cached()).settings()["after"]
        '</think>'
    """
    return After(strategy, marker)
