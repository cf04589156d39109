"""What the contrastive methods share: the plausibility cut, the two-stream session, and checked settings.

A contrastive method runs the prompt twice, each time with a KV cache of its own: once as it is, once with the media
taken out or disturbed, and pushes the logits away from the second run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.generation_options import refuse
from limelight.decoding.strategy import Detail, GenerationContext, StepOutput
from limelight.decoding.streams import main_stream
from limelight.errors import SettingError
from limelight.models.runtime.cached_decoder import Stream

Combine = Callable[[Tensor, Tensor, int], Tensor]
Around = Callable[[], AbstractContextManager[None]]


def plausible(logits: Tensor, beta: float) -> Tensor:
    """bool ``[B, V]``: tokens with ``p >= beta * max p`` (Li et al., 2023; Leng et al., 2024); 0 keeps all."""
    if beta == 0:
        return torch.ones_like(logits, dtype=torch.bool)
    return logits >= math.log(beta) + logits.amax(-1, keepdim=True)


def cut(values: Tensor, logits: Tensor, beta: float) -> Tensor:
    """``values`` with -inf where the unchanged model's ``logits`` make a token implausible."""
    return values.masked_fill(~plausible(logits, beta), float("-inf"))


def amplified(logits: Tensor, other: Tensor, alpha: float, beta: float) -> Tensor:
    """``(1 + alpha) l - alpha l'`` with the cut; tokens that the model itself bars stay barred.

    ``alpha = 0`` gives back ``logits``, uncut.
    """
    if alpha == 0:
        return logits
    out = (1 + alpha) * logits - alpha * other
    return cut(torch.where(torch.isneginf(logits), logits, out), logits, beta)


def guided(logits: Tensor, other: Tensor, weight: float, beta: float) -> Tensor:
    """``l + weight * (s - s')`` with the cut, ``s`` the log-softmax.

    Up to a constant a row this is ``s + weight * (s - s')``; ``weight = 0`` gives back ``logits``, uncut.
    """
    if weight == 0:
        return logits
    gain = torch.log_softmax(logits, dim=-1) - torch.log_softmax(other, dim=-1)
    out = torch.where(torch.isneginf(logits), logits, logits + weight * gain)
    return cut(out, logits, beta)


def details(plain: Tensor, out: Tensor) -> tuple[Detail, ...]:
    """A Detail a row: whether the distribution changed, and what the unchanged model would have said."""
    changed = (plain != out).any(dim=-1)
    return tuple(Detail(intervened=bool(c), plain=int(p)) for c, p in zip(changed, plain.argmax(-1), strict=True))


class ContrastSession:
    """Two cached streams and one formula: ``combine(logits, contrast logits, t)`` with t = 1 at the first token.

    ``main_prefill`` and ``contrast_prefill`` open a context around the first forward of either stream, the main one
    first.
    """

    def __init__(
        self, context: GenerationContext, contrast: Stream, combine: Combine,
        *, main_prefill: Around = nullcontext, contrast_prefill: Around = nullcontext,
    ) -> None:  # fmt: skip
        refuse(context, "a method with a second prompt", "prefill_chunk_size")
        self.main = main_stream(context)
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

    def cache(self) -> Any:
        return self.main.cache


def check_range(method: str, name: str, value: object, low: float, high: float = math.inf, *, hint: str) -> None:
    """Raise SettingError unless ``low <= value <= high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        most = f" and at most {high:g}" if high < math.inf else ""
        raise SettingError(f"{method}: expected {name} of at least {low:g}{most}, got {value!r}", hint=hint)


def check_choice(method: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise SettingError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise SettingError(f"{method}: {name} is {value!r}", hint=f"one of {', '.join(allowed)}")
