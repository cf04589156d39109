"""The session of a method that changes the model's own forward: one changed stream, and the unchanged one if needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.beams import reorder_streams
from limelight.decoding.generation_options import refuse
from limelight.decoding.strategy import Detail, GenerationContext, StepOutput
from limelight.decoding.streams import main_stream, second_stream
from limelight.models.runtime.cached_decoder import Stream


def prompt_length(context: GenerationContext) -> int:
    """Return the number of positions in front of the answer, those in a given cache included."""
    return context.ids.shape[1] + (context.past if context.partial else 0)


class InterventionSession:
    """Decodes on one stream, whose forwards run inside :meth:`changed`.

    A subclass overrides :meth:`changed`, and :meth:`acts` where some tokens stay the unchanged model's. ``length`` is the
    number of positions after the forward, ``count`` the number of tokens appended so far. ``plain`` costs one more cached
    forward per token and is computed only if details are requested.

    Args:
        recompute: run the whole prompt again behind a given cache (the method changes the prompt's own keys and values).
    """

    def __init__(self, context: GenerationContext, method: str, *, recompute: bool) -> None:
        refuse(context, method, "use_cache", "prefill_chunk_size")
        self.context, self.count = context, 0
        self.apart = recompute and bool(context.past)
        self.main: Stream = second_stream(context) if self.apart else main_stream(context)
        self.plain = second_stream(context) if context.details else None

    @property
    def length(self) -> int:
        return prompt_length(self.context) + self.count

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        """Return the context manager around the next forward."""
        return nullcontext()

    def after(self) -> None:
        """Called after every forward."""

    def acts(self) -> bool:
        """Return whether the forward is changed."""
        return True

    def acted(self, rows: int) -> list[bool]:
        """Return for each row whether the forward that just ran was changed."""
        return [self.acts()] * rows

    def next(self, tokens: Tensor | None) -> StepOutput:
        self.count += tokens is not None
        with self.changed(prefill=tokens is None):
            logits = self.main.next(tokens)
        self.after()
        rows = logits.shape[0]
        plain: list[int | None] = [None] * rows
        if self.plain is not None:
            plain = self.plain.next(tokens).argmax(-1).tolist()
        found = tuple(Detail(intervened=a, plain=p) for a, p in zip(self.acted(rows), plain, strict=True))
        return StepOutput(logits, found)

    def cache(self) -> Any:
        return None if self.apart else self.main.cache  # else the loop fills generate()'s

    def reorder(self, rows: Tensor) -> None:
        """Continue row ``i`` from row ``rows[i]`` of the same prompt (beam search)."""
        reorder_streams(rows, self.main, self.plain)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
