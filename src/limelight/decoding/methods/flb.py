"""FLB: the logits of the first token, which have seen nothing but prompt and media, are added to all later ones.

Source: Ha et al., "First Logit Boosting: Visual Grounding Method to Mitigate Object Hallucination in Large
Vision-Language Models", CVPR 2026 (arXiv 2604.00455); formula and defaults as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from limelight.decoding.contrastive import check_range, details
from limelight.decoding.formulas import boosted
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.decoding.streams import StreamSession


@dataclass(frozen=True)
class Flb(Method):
    """``l_t + gamma (1 - exp(-decay t)) l_0`` with the plausibility cut on ``l_t``; t = 0 at the first token.

    Args:
        gamma: the largest weight of the first token's logits; 0 is the unchanged model.
        decay: how fast the weight grows (the paper's lambda).
        beta: plausibility cut, in [0, 1]; 0 drops none.

    The first token's weight is 0, so a one-word answer does not change.

    Differs from the paper: nothing known.
    Differs from the released code (LLaVA-1.5, InstructBLIP; batch 1, sampling only): any family, batches and greedy
    decoding; gamma 0 changes nothing (there it still cuts). There it may act on VCD's logits, too; here it acts on the
    model's own. Without this library's loop: :class:`FirstLogitBoosting`.
    """

    name = "flb"
    capabilities = Capabilities(batches=True, needs_media=False, continues_cache=True, beams=True)

    gamma: float = 0.3
    decay: float = 0.05
    beta: float = 0.1

    def __post_init__(self) -> None:
        check_settings(self.gamma, self.decay, self.beta)

    def session(self, context: GenerationContext) -> FlbSession:
        return FlbSession(self, context)


class FlbSession(StreamSession):  # all beams of a prompt share their first logits
    def __init__(self, strategy: Flb, context: GenerationContext) -> None:
        super().__init__(context)
        self.strategy = strategy
        self.first: Tensor | None = None
        self.count = -1

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits = self.main.next(tokens)
        self.first = logits if self.first is None else self.first
        self.count += 1
        s = self.strategy
        out = boosted(logits, self.first, self.count, s.gamma, s.decay, s.beta)
        return StepOutput(out, details(logits, out), unchanged=logits)


class FirstLogitBoosting(LogitsProcessor):  # type: ignore[misc]
    """FLB as a logits processor of transformers, for ``model.generate`` without this library's loop.

    ``model.generate(**inputs, logits_processor=LogitsProcessorList([FirstLogitBoosting()]))``. One object serves one
    ``generate()`` call after the other, with batches, sampling and beams; not two calls at once. It needs neither the
    model nor its media, and acts after generate()'s own processors (a token that they bar at the first step counts as the
    least likely that they leave) and before temperature, top-k and top-p. Answers equal those of the strategy ``flb``.

    Args:
        gamma, decay, beta: see :class:`Flb`.

    Raises:
        SettingError: a setting out of range.
    """

    def __init__(self, gamma: float = 0.3, decay: float = 0.05, beta: float = 0.1) -> None:
        check_settings(gamma, decay, beta)
        self.gamma, self.decay, self.beta = gamma, decay, beta
        self.first: Tensor | None = None
        self.before = torch.zeros(0, 0, dtype=torch.long)
        self.start = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the boosted scores ``[B, V]`` of the token after ``input_ids`` [B, T]."""
        length = input_ids.shape[1]
        if self.first is None or self.first.shape != scores.shape or not self._continues(input_ids):
            self.first, self.start = scores.clone(), length
        self.before = input_ids
        return boosted(scores, self.first, length - self.start, self.gamma, self.decay, self.beta)

    def _continues(self, ids: Tensor) -> bool:
        """Return whether every row is a row of the last call, in any order (beams), and one token."""
        if ids.shape[1] != self.before.shape[1] + 1 or ids.device != self.before.device:
            return False
        return bool((ids[:, None, :-1] == self.before[None]).all(-1).any(-1).all())


def check_settings(gamma: float, decay: float, beta: float) -> None:
    check_range("flb", "gamma", gamma, 0.0, hint="the paper: 0.3")
    check_range("flb", "decay", decay, 0.0, hint="the paper: 0.05")
    check_range("flb", "beta", beta, 0.0, 1.0, hint="the paper: 0.1")


flb = Flb
STRATEGIES = {"flb": Flb}
