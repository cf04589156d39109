"""Relevance-contrastive decoding: ``l'(v) = l(v) + alpha * s(v)``, where s is Phi_M or its z-score over the vocabulary.

Ours, not the paper's. Phi_M(v) is the media's part of each candidate's logit, computed in one dual forward; amplifying
it is contrastive decoding to first order, with Phi_M in place of ``l(v) - l_without_image(v)``, without a second prompt
or optimisation. alpha controls how far the media are trusted over the text: where the text is right and the image is
poor, a larger value costs accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_choice
from limelight.decoding.dual import check_composite, explainer, vocabulary
from limelight.decoding.methods.meter import measure, meter_stream
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.errors import SettingError
from limelight.grounding.gate import Gate
from limelight.grounding.score import z_score

DEFAULTS: Mapping[str, Any] = {"alpha": 2.0, "beta": 0.1, "score": "phi"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "captions": {"alpha": 2.0, "beta": 0.02, "score": "z"},
    "questions": {"alpha": 2.0, "beta": 0.1, "score": "z"},
    "transcripts": {"alpha": 1.0, "beta": 0.1, "score": "z"},
}


@dataclass(frozen=True)
class RelevanceContrastive(Method):
    """``l + alpha * s``, with an adaptive plausibility cut.

    Args:
        alpha: how far to trust the media over the text; 0 is the unchanged model. None: the preset's, else 2.
        score: s: ``phi``, Phi_M(v) in units of the logit, or ``z``, its z-score over the vocabulary
            (:mod:`limelight.grounding.score`), with which alpha does not depend on the model's scale. None: the preset's,
            else ``phi``.
        beta: tokens with ``p < beta * max p`` are dropped (Li et al., 2023, eq. 4); 0 drops none. None: the preset's, else .1.
        decay: alpha at the t-th generated token is ``alpha * exp(-decay * t)``.
        composite: ``attnlrp`` or ``cp-lrp``.
        gate, threshold: intervene always, where uncertain, or where ungrounded (:class:`Gate`).
        preset: alpha, beta and score for a kind of task, chosen on the miniatures' dev splits: ``captions``, ``questions`` or
            ``transcripts`` (:data:`PRESETS`). Explicit settings take precedence. No setting lowers the audio miniature's word
            error rate (docs/free-text.md), so ``transcripts`` is a mild one.
    """

    name = "relevance-contrastive"

    alpha: float = None  # type: ignore[assignment]  # each is a value once the strategy is made
    beta: float = None  # type: ignore[assignment]
    decay: float = 0.0
    composite: str = "attnlrp"
    gate: str = "always"
    threshold: float = 0.95
    score: str = None  # type: ignore[assignment]
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise SettingError(f"unknown preset {self.preset!r}", hint=f"one of {', '.join(PRESETS)}, or leave it out")
        for name, value in (DEFAULTS if self.preset is None else PRESETS[self.preset]).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_composite(self.composite)
        check_choice(self.name, "score", self.score, ("phi", "z"))
        Gate(self.gate, self.threshold)
        if not math.isfinite(self.alpha):
            raise SettingError(
                f"alpha must be finite, got {self.alpha}", hint="2 is a modest default, 0 the unchanged model"
            )
        if not 0 <= self.beta <= 1:
            raise SettingError(f"beta must be in [0, 1], got {self.beta}", hint="0.1 is the usual cut")
        if not 0 <= self.decay < math.inf:
            raise SettingError(f"decay must not be negative, got {self.decay}", hint="0 keeps alpha constant")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batches=True, beams=True, meter=self.composite)

    def session(self, context: GenerationContext) -> RelevanceContrastiveSession:
        return RelevanceContrastiveSession(self, context)


class RelevanceContrastiveSession:
    def __init__(self, strategy: RelevanceContrastive, context: GenerationContext) -> None:
        self.strategy, self.context = strategy, context
        self.gate = Gate(strategy.gate, strategy.threshold)
        self.count = 0
        self.dual = meter_stream(context, strategy.composite)

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits, phi, split = measure(self.dual, tokens)
        alpha = self.strategy.alpha * math.exp(-self.strategy.decay * self.count)
        self.count += 1
        opened = self.gate.opens(logits, phi) & (alpha != 0)
        added = phi if self.strategy.score == "phi" else z_score(phi, vocabulary(self.context, phi, logits))
        out = amplified(logits, added, alpha, self.strategy.beta)
        out = torch.where(opened[:, None], out, logits)
        return StepOutput(
            out,
            explain=explainer(self.context, logits, phi, split=split, opened=opened, composite=self.strategy.composite),
            unchanged=logits,
        )

    def reorder(self, rows: Tensor) -> None:
        self.dual.reorder(rows)


def amplified(logits: Tensor, phi: Tensor, alpha: float, beta: float) -> Tensor:
    """Compute ``l + alpha * phi``; tokens with ``l < log(beta) + max l`` of the unchanged model get -inf."""
    out = logits + alpha * phi
    if beta > 0 and alpha != 0:
        out = out.masked_fill(logits < math.log(beta) + logits.amax(-1, keepdim=True), float("-inf"))
    return out


def relevance_contrastive(**settings: Any) -> RelevanceContrastive:
    """Relevance-contrastive decoding; see :class:`RelevanceContrastive` for the settings."""
    return RelevanceContrastive(**settings)


STRATEGIES = {"relevance-contrastive": RelevanceContrastive}
