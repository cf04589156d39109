"""What localisers are given: the decoder's call of the rows that are to be looked at again, and their decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.looking.decision import Decision
from limelight.errors import NotFiniteError
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.types import Prompt, Span


@dataclass(frozen=True)
class Glance:
    """R rows whose next token is to be decided.

    Attributes:
        call: prompts and answers so far, left-padded, ``T`` positions (those of a phrase included).
        media: bool ``[R, T]``, positions of images, audio and video.
        decision: what is decided.
        spans: of each row, a partition of its positions.
        prompts: of each row, as prepared.
        answer: number of positions behind the prompts (answer so far, phrase).
        options: settings of the localiser: ``seed``, ``target``, ``generic``, ``channels``.
    """

    adapter: Adapter
    call: DecoderCall
    media: Tensor
    decision: Decision
    spans: tuple[tuple[Span, ...], ...]
    prompts: tuple[Prompt, ...]
    answer: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return int(self.call.embeds.shape[0])

    def objective(self, hidden: Tensor) -> Tensor:
        """The decision ``[R]`` from the decoder's last hidden states ``[R, T, D]``."""
        phrase = self.decision.phrase
        if not phrase:
            return self.decision.margin(_wide(self.adapter.logits(hidden[:, -1:])[:, 0]))
        logits = _wide(self.adapter.logits(hidden[:, -len(phrase) :]))
        return logits.gather(-1, torch.tensor(phrase, device=logits.device).expand(self.rows, -1)[..., None]).sum(
            (1, 2)
        )

    def log_probability(self, hidden: Tensor) -> Tensor:
        """``[R]``: log-probability of the likeliest next token."""
        return _wide(self.adapter.logits(hidden[:, -1:])[:, 0]).log_softmax(-1).amax(-1)

    def entropy(self, hidden: Tensor) -> Tensor:
        """``[R]``: entropy of the next token, in nats."""
        logp = _wide(self.adapter.logits(hidden[:, -1:])[:, 0]).log_softmax(-1)
        return -(logp.exp() * logp.nan_to_num(neginf=0.0)).sum(-1)

    def own(self, row: int) -> tuple[Span, ...]:
        """The media's spans of a row."""
        return tuple(s for s in self.spans[row] if s.modality != "text")


def gradient(glance: Glance, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient ``[R, T, D]`` of ``objective(hidden) [R]`` with respect to the merged embeddings; no relevance rules."""
    with differentiable(glance) as (call, embeds):
        f = objective(glance.adapter.hidden(call, embeds)).sum()
        (found,) = torch.autograd.grad(f, embeds)
    return finite(found)


@contextmanager
def differentiable(glance: Glance) -> Iterator[tuple[DecoderCall, Tensor]]:
    """The call and its embeddings as a leaf, inside a block where gradients are computed and parameters have none."""
    with torch.inference_mode(False), torch.enable_grad(), glance.adapter.frozen():
        call = glance.call.ordinary()
        yield call, call.embeds.detach().requires_grad_(True)


def finite(scores: Tensor) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise NotFiniteError("the map of where to look contains NaN or infinity", hint="try float32 or bfloat16")
    return scores.detach()


def positions(spans: Sequence[Span]) -> list[int]:
    return [i for s in spans for i in range(s.start, s.stop)]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
