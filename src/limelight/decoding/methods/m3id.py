"""M3ID: contrast with the logits without the image, with a strength that grows with the length of the answer.

Source: Favero et al., "Multi-Modal Hallucination Control by Visual Information Grounding", CVPR 2024 (arXiv
2403.14003). The authors released no code; the implementation in common use is in AvisC's repository (Woo et al., 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import media_mask, without
from limelight.decoding.contrastive import ContrastSession, check_choice, check_range, guided
from limelight.decoding.generation_options import refuse
from limelight.decoding.instruments import masked_media
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.decoding.streams import second_stream
from limelight.errors import SettingError

GATE = {"paper": 0.3, "released": 1.0}
BETA = {"paper": 0.0, "released": 0.1}


@dataclass(frozen=True)
class M3id(Method):
    """``s + [max p < gate] ((1 - g) / g) (s - s')``, ``g = exp(-decay * t)``, t = 1 at the first token.

    ``s`` and ``s'`` are the log-softmax of the logits with and without the media, ``p = exp(s)``.

    Args:
        decay: assumed rate at which the image's influence fades; 0 is the unchanged model.
        variant: the defaults of ``gate`` and ``beta``: ``paper`` (gate 0.3, no cut), or ``released``, as in AvisC's
            repository (no gate, cut 0.1).
        gate: contrast only where the model's most likely token is less probable than this; 1: at every token.
        beta: plausibility cut where the contrast acts, in [0, 1]; 0 drops none.
        without: ``drop``: ``s'`` from the prompt without the media's positions (paper and released code); ``zero``: from
            zeroed embeddings at these positions, which keeps positions and length (ours, for models that require media).

    Differs from the paper: nothing known in ``variant="paper"``. The two variants are different methods: the paper's never
    changes a first token with a probability of at least 0.3, as in most answers to yes/no questions.
    Differs from AvisC's code (LLaVA-1.5, InstructBLIP; one prompt at a time; sampling only; decay fixed at 0.02): a cut
    of 0.1 and no gate there (``variant="released"``); any family and modality, batches, greedy decoding; start and end
    markers around the media, which LLaVA-1.5 does not have, stay in the second prompt. The logits keep the model's
    constant, so decay 0 returns them unchanged.
    """

    name = "m3id"
    capabilities = Capabilities(batches=True, beams=True, second_prompt=True, continues_cache=True)

    decay: float = 0.02
    variant: str = "paper"
    gate: float | None = None
    beta: float | None = None
    without: str = "drop"

    def __post_init__(self) -> None:
        check_range("m3id", "decay", self.decay, 0.0, hint="the paper: 0.02")
        if self.variant in ("drop", "zero"):
            raise SettingError(
                f"m3id: expected variant paper or released, got {self.variant!r}",
                hint=f"to choose how the media are removed, pass without={self.variant!r}",
            )
        check_choice("m3id", "variant", self.variant, ("paper", "released"))
        check_choice("m3id", "without", self.without, ("drop", "zero"))
        if self.gate is not None:
            check_range("m3id", "gate", self.gate, 0.0, 1.0, hint="the paper: 0.3; 1 is no gate")
        if self.beta is not None:
            check_range("m3id", "beta", self.beta, 0.0, 1.0, hint="the paper: 0 (no cut); the released code: 0.1")

    def session(self, context: GenerationContext) -> ContrastSession:
        gate = GATE[self.variant] if self.gate is None else self.gate
        beta = BETA[self.variant] if self.beta is None else self.beta

        def combine(logits: Tensor, other: Tensor, t: int) -> Tensor:
            out = guided(logits, other, math.expm1(self.decay * t), beta)
            return out if gate >= 1 else torch.where(unsure(logits, gate)[:, None], out, logits)

        media = media_mask(context)
        if self.without == "drop":
            return ContrastSession(context, without(context, media), combine)
        refuse(context, "m3id's without='zero'", "use_cache")
        contrast = second_stream(context)
        return ContrastSession(
            context, contrast, combine, contrast_prefill=lambda: masked_media(context.adapter, ~media)
        )


def unsure(logits: Tensor, gate: float) -> Tensor:
    """Return a mask ``[B]`` of rows whose most likely token has a probability below ``gate``."""
    return torch.softmax(logits, dim=-1).amax(dim=-1) < gate


m3id = M3id
STRATEGIES = {"m3id": M3id}
