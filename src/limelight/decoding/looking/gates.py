"""When a second look is worth its cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limelight.calibration import flag_rule
from limelight.decoding.dual import calibration_of, captured, vocabulary
from limelight.decoding.dual import open_stream as dual_stream
from limelight.decoding.looking.decision import decide
from limelight.decoding.methods.meter import measure
from limelight.decoding.strategy import GenerationContext
from limelight.grounding.score import z_score
from limelight.relevance.forward.stream import modality_channel

GATES = ("auto", "uncertain", "ungrounded", "always")
UNCERTAIN = 0.9  # difference between the probabilities of the two likeliest tokens


class Gate:
    """``open(logits, tokens)``: whether each row's next token is to be looked at again, bool ``[B]``.

    ``uncertain``: the probabilities of its two likeliest tokens differ by less than the threshold. ``ungrounded``: the
    media's support for the likeliest token, in standard deviations from the vocabulary's mean, is below the threshold
    (default: that of the model's flag); runs the meter. ``always``: at the first token. ``auto``: at the first token of
    answers that begin with yes or no, however sure they are; else uncertain.
    """

    def __init__(self, name: str, threshold: float | None, context: GenerationContext) -> None:
        self.name, self.context = name, context
        self.dual = None
        if name == "ungrounded":
            call, media = captured(context)
            self.dual = dual_stream(context, call, [modality_channel(media, call.mask)], "attnlrp")
            rule = flag_rule(calibration_of(context.adapter, "attnlrp"))
            self.threshold = float(rule["threshold"]) if threshold is None else threshold
        else:
            self.threshold = UNCERTAIN if threshold is None else threshold

    def open(self, logits: Tensor, tokens: Tensor | None) -> Tensor:
        if self.name == "always":
            return torch.ones(len(logits), dtype=torch.bool)
        if self.dual is not None:
            own, phi, _ = measure(self.dual, tokens)
            z = z_score(phi, vocabulary(self.context, phi, own))
            chosen = z.gather(-1, own.argmax(-1, keepdim=True))[:, 0]
            return (chosen < self.threshold).cpu()
        best = logits.softmax(-1).topk(2, dim=-1).values
        unsure = (best[:, 0] - best[:, 1] < self.threshold).cpu()
        if self.name == "auto" and tokens is None:
            decision, first = decide(logits, "auto", self.context.adapter.tokenizer), logits.argmax(-1)
            if decision.asks is not None:
                says = (first == decision.chosen) | (first == decision.other)
                return unsure | (decision.asks & says).cpu()
        return unsure


def finite_threshold(value: float | None) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
