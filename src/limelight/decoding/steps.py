"""The public Step of one emitted token, from what the session reports of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from limelight.decoding.strategy import Detail
from limelight.models.adapter import Adapter
from limelight.types import Step

OnStep = Callable[[int, Step], None]


def build_step(adapter: Adapter, detail: Detail, processed: Tensor, token: int, top: int) -> Step:
    """Build one row's Step; ``processed`` [V] are the logits that ``token`` was chosen from."""
    logprobs = torch.log_softmax(processed.double(), dim=-1)
    best = logprobs.topk(min(top, logprobs.shape[-1]))
    words = adapter.tokens(best.indices) if top else ()
    spelled = tuple((t, adapter.tokens([t])[0], logit, phi) for t, logit, phi in detail.candidates)
    values = {f.name: getattr(detail, f.name) for f in fields(detail)}  # a Step has every field of a Detail
    return Step(
        token,
        adapter.tokens([token])[0],
        float(logprobs[token]),
        **{**values, "candidates": spelled},
        top_logprobs=tuple(zip(words, best.values.tolist(), strict=True)) if top else (),
    )
