"""Plain decoding with the unchanged model, cached, greedy or sampled: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from limelight.decoding.beams import reorder_streams
from limelight.decoding.own_relevance import OwnRelevance
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, StepOutput
from limelight.decoding.streams import main_stream


@dataclass(frozen=True)
class Greedy:
    """Decoding without intervention. With ``do_sample=True`` in generate this is plain sampling."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        batches=True, beams=True, needs_media=False, continues_cache=True
    )

    @property
    def name(self) -> str:
        return "greedy"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, context: GenerationContext) -> GreedySession:
        return GreedySession(context)


class GreedySession:
    def __init__(self, context: GenerationContext) -> None:
        self.context = context
        self.stream = main_stream(context)
        self.own = OwnRelevance(context)
        if context.details:
            context.require_prompt()

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits = self.stream.next(tokens)
        return StepOutput(logits, explain=lambda row, token: self._explain(logits, row, token))

    def cache(self) -> Any:
        return self.stream.cache

    def reorder(self, rows: Tensor) -> None:
        reorder_streams(rows, self.stream)

    def _explain(self, logits: Tensor, row: int, token: int) -> Detail:
        plain = int(logits[row].argmax())
        if not self.context.details:
            return Detail(plain=plain)
        relevance = self.own.of(row, token, self.stream.ids)
        return Detail(relevance, relevance.shares(), plain=plain)


def greedy() -> Greedy:
    """Plain decoding with the unchanged model."""
    return Greedy()


STRATEGIES = {"greedy": Greedy}
