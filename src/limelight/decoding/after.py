"""Strategies applied only after a marker, such as the end of a reasoning model's thinking section.

Reasoning models emit a thinking section first (``<think> ... </think>``) and answer afterwards. Until the marker the
model decodes unchanged, at the cost of plain decoding; then the strategy's session is opened on prompt and thinking
section together, as if both had been the prompt. The rows of a batch reach the marker independently.
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
from limelight.models.spans import grown
from limelight.thinking import MARKERS, THINKING

_TWO_WAY = ("paligemma",)


@dataclass(frozen=True)
class After:
    """Applies ``inner`` from the token after ``marker`` on.

    Args:
        inner: any strategy.
        marker: a text such as ``</think>``, searched in the generated text; a token id; or ``"thinking"``: any text that
            ends a thinking section (:data:`limelight.thinking.MARKERS`, also used by the benchmarks).

    If the prompt ends with the marker (chat templates write it there to disable thinking), the strategy acts at once.
    If the marker never occurs, the answer is the unchanged model's: every ``Step.intervened`` is False.
    Counters of the inner strategy (M3ID's decay) start at the marker.
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
                f"{self.inner.name} cannot start at a marker",
                hint="use it without after=, or another strategy",
            )

    @property
    def capabilities(self) -> Capabilities:
        """The inner strategy's, adjusted: its session opens for all rows at the first marker, plain cached decoding before."""
        return replace(
            capabilities_of(self.inner),
            batches=False,
            second_prompt=True,
            continues_cache=True,
            meter="",
            after=False,
            beams=False,
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
        self.generated: list[list[int]] = [[] for _ in range(context.ids.shape[0])]
        self.thinking = [not self.ends(ids[m].tolist(), True) for ids, m in zip(context.ids, context.mask, strict=True)]
        self.plain = GreedySession(context)
        self.inner: Session | None = None

    def next(self, tokens: Tensor | None) -> StepOutput:
        for row, token in enumerate([] if tokens is None else tokens.tolist()):
            self.generated[row].append(token)
            self.thinking[row] = self.thinking[row] and not self.ends(self.generated[row], False)
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
        """Return the plain stream's cache, extended by all generated tokens, or the inner session's own if it has one."""
        if self.inner is not None and not any(self.thinking) and hasattr(self.inner, "cache"):
            found = self.inner.cache()
            if found is not None:
                return found
        stream = self.plain.main
        if stream.output is None:
            return None
        missing = torch.tensor(self.generated, device=stream.ids.device)[
            :, stream.ids.shape[1] - self.context.ids.shape[1] :
        ]
        if missing.shape[1]:
            stream.extend(missing)
        return stream.cache

    def _inner(self, tokens: Tensor | None) -> StepOutput:
        """Return the inner strategy's step output; used once any row is past the marker."""
        if self.inner is not None:
            return self.inner.next(tokens)
        untouched = tokens is None and not any(self.thinking)  # else the prompt's own cache is the plain stream's
        self.inner = self.strategy.inner.session(self.context if untouched else extended(self.context, self.generated))
        return self.inner.next(None)


def ending_with(marker: str | int, tokenizer: Any) -> Callable[[Sequence[int], bool], bool]:
    """Return a predicate (token ids, allow trailing whitespace) -> whether they end with the marker.

    The marker's last token may contain further text.
    """
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
            f"after={marker!r} is a text, but there is no tokenizer to match it with",
            hint="use custom_generate(strategy, processor=processor), or pass the token id",
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


def extended(context: GenerationContext, generated: Sequence[Sequence[int]]) -> GenerationContext:
    """Return the context of the prompt extended by the generated tokens (equally many per row), with a new cache.

    Raises:
        UnsupportedError: an input whose axes are not declared; several answers per prompt;
            a model with bidirectional attention over the prompt.
    """
    context.require_prompt()
    n = len(generated[0])
    if context.adapter.model.config.model_type in _TWO_WAY:
        raise UnsupportedError(
            f"{type(context.adapter.model).__name__} attends to its prompt bidirectionally, so generated tokens cannot "
            "become part of it",
            hint="use the strategy without after=",
        )
    new = torch.tensor([list(s) for s in generated], dtype=context.ids.dtype, device=context.ids.device).reshape(
        len(generated), n
    )
    ids = torch.cat([context.ids, new], dim=1)
    given = {k: v for k, v in context.kwargs.items() if k != "past_key_values"}
    embeds = given.pop("inputs_embeds", None)
    kwargs = context.adapter.arguments.append(given, n)
    if embeds is not None:
        kwargs["inputs_embeds"] = torch.cat(
            [embeds, context.adapter.embed(new)[..., : embeds.shape[-1]].to(embeds)], dim=1
        )
    prepared: Any = context.kwargs.get("past_key_values")
    if type(prepared) is DynamicCache:  # not every model creates its cache itself
        kwargs["past_key_values"] = DynamicCache(config=context.adapter.model.config.get_text_config(decoder=True))
    tensors = dict(context.tensors)
    name = context.adapter.names.ids
    before = tensors.get(name)
    if isinstance(before, Tensor):
        if before.shape[0] != ids.shape[0]:
            raise UnsupportedError(
                f"after= does not support several answers per prompt: got {ids.shape[0]} rows for {before.shape[0]} prompts",
                hint="use num_return_sequences=1, one call per seed",
            )
        tensors[name] = ids
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
    """Apply ``strategy`` from the token after ``marker`` on; see :class:`After`.

    Example:
        >>> import limelight
        >>> limelight.after("</think>", limelight.lime_cached()).settings()["after"]
        '</think>'
    """
    return After(strategy, marker)
