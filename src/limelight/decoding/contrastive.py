"""Shared parts of the contrastive methods: the plausibility cut, the two-stream session, and setting checks.

A contrastive method runs the prompt twice, each time with its own KV cache: once unchanged, once with the media
removed or distorted, and moves the logits away from those of the second run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from limelight.decoding.formulas import amplified, cut, guided, plausible
from limelight.decoding.generation_options import refuse
from limelight.decoding.strategy import Detail, GenerationContext, StepOutput
from limelight.decoding.streams import StreamSession
from limelight.errors import SettingError
from limelight.models.runtime.cached_decoder import Stream

__all__ = [
    "Around", "Combine", "ContrastSession", "amplified", "check_choice", "check_count", "check_layer_range", "check_range",
    "cut", "details", "first_and_last", "guided", "plausible",
]  # fmt: skip

Combine = Callable[[Tensor, Tensor, int], Tensor]
Around = Callable[[], AbstractContextManager[None]]


def details(plain: Tensor, out: Tensor) -> tuple[Detail, ...]:
    """Return one Detail per row: whether the distribution changed, and the unchanged model's most likely token."""
    changed = (plain != out).any(dim=-1)
    return tuple(Detail(intervened=bool(c), plain=int(p)) for c, p in zip(changed, plain.argmax(-1), strict=True))


class ContrastSession(StreamSession):
    """A session with two cached streams, combined by ``combine(logits, contrast logits, t)``, t = 1 at the first token.

    ``main_prefill`` and ``contrast_prefill`` are context managers around the first forward of each stream; the main
    stream runs first.
    """

    def __init__(
        self, context: GenerationContext, contrast: Stream, combine: Combine,
        *, main_prefill: Around = nullcontext, contrast_prefill: Around = nullcontext,
    ) -> None:  # fmt: skip
        refuse(context, "a method with a second prompt", "prefill_chunk_size")
        super().__init__(context, contrast)
        self.contrast = contrast
        self.combine = combine
        self.prefills = (main_prefill, contrast_prefill)
        self.count = 0

    def next(self, tokens: Tensor | None) -> StepOutput:
        around = self.prefills if tokens is None else (nullcontext, nullcontext)
        with around[0]():
            plain = self.main.next(tokens)
        with around[1]():
            other = self.contrast.next(tokens)
        self.count += 1
        out = self.combine(plain, other, self.count)
        return StepOutput(out, details(plain, out), unchanged=plain)


def check_range(method: str, name: str, value: object, low: float, high: float = math.inf, *, hint: str) -> None:
    """Raise SettingError unless ``low <= value <= high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        most = f" and at most {high:g}" if high < math.inf else ""
        raise SettingError(f"{method}: expected {name} of at least {low:g}{most}, got {value!r}", hint=hint)


def check_count(method: str, name: str, value: object, least: int, *, hint: str) -> None:
    """Raise SettingError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(f"{method}: expected {name} of at least {least}, got {value!r}", hint=hint)


def check_layer_range(method: str, start: int | None, stop: int | None, *, hint: str) -> None:
    """Raise SettingError unless ``0 <= start < stop``; None is any."""
    first = 0 if start is None else start
    if first < 0 or (stop is not None and stop <= first):
        raise SettingError(f"{method}: expected 0 <= start < stop, got {start} and {stop}", hint=hint)


def first_and_last(method: str, layers: Sequence[int] | None, *, hint: str) -> tuple[int, int] | None:
    """Return a setting ``layers`` (a list where it comes from a file) as a pair.

    Raises:
        SettingError: it is not (first, last).
    """
    if layers is None:
        return None
    if len(layers) != 2 or layers[1] < layers[0]:
        raise SettingError(f"{method}: expected layers (first, last), got {tuple(layers)}", hint=hint)
    return layers[0], layers[1]


def check_choice(method: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise SettingError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise SettingError(f"{method}: got {name}={value!r}", hint=f"use one of {', '.join(allowed)}")
