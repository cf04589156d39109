"""M3ID: push the logits away from those without the picture, more the longer the answer gets.

Source: Favero et al., "Multi-Modal Hallucination Control by Visual Information Grounding", CVPR 2024 (arXiv
2403.14003). The authors released no code; the formula in use is that of AvisC's repository (Woo et al.,
2024), which adds the plausibility cut.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from limelight.decoding.contrast_inputs import percept, without
from limelight.decoding.contrastive import ContrastSession, check_choice, check_range, guided
from limelight.decoding.instruments import masked_percept
from limelight.decoding.strategy import Run
from limelight.models.runtime.cached_decoder import Stream


@dataclass(frozen=True)
class M3id:
    """``s + ((1 - g) / g) (s - s')`` with ``g = exp(-decay * t)``, t = 1 at the first token; ``s`` log-softmax.

    Args:
        decay: how fast the picture is believed to be forgotten; 0 is the model itself.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        variant: ``drop``: ``s'`` from the prompt without the percept's positions (the paper); ``zero``: from zeroed
            embeddings in their place, which keeps positions and length (ours, for models that insist on media).

    Differs from AvisC's code: the position ids of the second prompt are its own; start and end markers around the media
    stay in it; any modality, batches, greedy. The logits keep the model's constant, so that decay 0 gives them back.
    """

    decay: float = 0.02
    beta: float = 0.1
    variant: str = "drop"

    def __post_init__(self) -> None:
        check_range("m3id", "decay", self.decay, 0.0, hint="the paper: 0.02")
        check_range("m3id", "beta", self.beta, 0.0, 1.0, hint="0.1 is in use")
        check_choice("m3id", "variant", self.variant, ("drop", "zero"))

    @property
    def name(self) -> str:
        return "m3id"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, run: Run) -> ContrastSession:
        def combine(logits: Tensor, other: Tensor, t: int) -> Tensor:
            return guided(logits, other, math.expm1(self.decay * t), self.beta)

        gone = percept(run)
        if self.variant == "drop":
            return ContrastSession(run, without(run, gone), combine)
        contrast = Stream.fresh(run.adapter, run.ids, run.kwargs)
        return ContrastSession(run, contrast, combine, contrast_prefill=lambda: masked_percept(run.adapter, ~gone))


def m3id(**settings: Any) -> M3id:
    """Multi-modal mutual information decoding; see :class:`M3id` for the settings."""
    return M3id(**settings)


STRATEGIES = {"m3id": M3id}
