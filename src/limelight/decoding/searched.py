"""The session of methods that determine the whole answer by a search before its first token is emitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from limelight.decoding.generation_options import refuse
from limelight.decoding.processors import require_stateless
from limelight.decoding.strategy import Detail, GenerationContext, StepOutput
from limelight.errors import UnsupportedError

Answer = Sequence[tuple[int, Detail]]


class SearchedSession(ABC):
    """Searches at the first call, then emits each row's answer token by token, with log-probability 0.

    Raises:
        UnsupportedError: sampling, a cache option other than the default, or logits processors that keep state (they act
            within the search).
    """

    def __init__(self, context: GenerationContext, method: str) -> None:
        if context.sampler.sample:
            raise UnsupportedError(
                f"{method} searches for one answer and cannot sample", hint="use do_sample=False, or another strategy"
            )
        refuse(context, method, "use_cache", "prefill_chunk_size", "cache_implementation")
        require_stateless(context.sampler.processors, method)
        self.context = context
        self.answers: list[Answer] = []
        self.count, self.width = 0, 0

    @abstractmethod
    def search(self) -> list[Answer]:
        """Return every row's tokens, at least one, and set ``width``, the number of logits."""

    def next(self, tokens: Tensor | None) -> StepOutput:
        if tokens is None:
            self.answers = self.search()
        else:
            self.count += 1
        due = [answer[min(self.count, len(answer) - 1)] for answer in self.answers]
        ids = self.context.ids.new_tensor([token for token, _ in due])
        out = torch.full((len(due), self.width), float("-inf"), device=ids.device).scatter(1, ids[:, None], 0.0)
        last = torch.tensor([self.count + 1 >= len(answer) for answer in self.answers], device=ids.device)
        return StepOutput(out, tuple(detail for _, detail in due), decided=True, last=last)


def library_criteria(criteria: Any) -> StoppingCriteriaList:
    """Select transformers' own criteria, which apply to any hypothesis; custom ones see emitted tokens only."""
    known = (MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria, EosTokenCriteria)
    return StoppingCriteriaList(c for c in criteria or () if type(c) in known)
