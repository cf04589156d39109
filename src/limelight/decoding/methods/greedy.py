"""Plain decoding with the unchanged model, cached, greedy or sampled: the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from limelight.decoding.own_relevance import OwnRelevance
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, Method, StepOutput
from limelight.decoding.streams import StreamSession


@dataclass(frozen=True)
class Greedy(Method):
    """Decoding without intervention. With ``do_sample=True`` in generate this is plain sampling."""

    name = "greedy"
    capabilities = Capabilities(batches=True, beams=True, needs_media=False, continues_cache=True)

    def session(self, context: GenerationContext) -> GreedySession:
        return GreedySession(context)


class GreedySession(StreamSession):
    def __init__(self, context: GenerationContext) -> None:
        super().__init__(context)
        self.own = OwnRelevance(context)
        if context.details:
            context.require_prompt()

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits = self.main.next(tokens)
        return StepOutput(logits, explain=lambda row, token: self._explain(logits, row, token))

    def _explain(self, logits: Tensor, row: int, token: int) -> Detail:
        plain = int(logits[row].argmax())
        if not self.context.details:
            return Detail(plain=plain)
        relevance = self.own.of(row, token, self.main.ids)
        return Detail(relevance, relevance.shares(), plain=plain)


def greedy() -> Greedy:
    """Plain decoding with the unchanged model."""
    return Greedy()


STRATEGIES = {"greedy": Greedy}
