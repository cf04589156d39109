"""What the cached methods share: a dual stream on a prompt, and what it says of each chosen token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limelight.decoding.strategy import Detail, Run
from limelight.errors import SettingError
from limelight.grounding.gate import group_share
from limelight.grounding.objectives import check_groups
from limelight.models.capture import DecoderCall
from limelight.relevance.composites import COMPOSITES
from limelight.relevance.tangents import Channel, DualStream
from limelight.types import MODALITIES, Modality

TOP = 5


def captured(run: Run) -> tuple[DecoderCall, Tensor]:
    """The prompt at the decoder's door and its perceptual positions ``[B, T]``; nothing made under inference_mode."""
    with torch.inference_mode(False), torch.no_grad():
        call = run.adapter.capture(run.inputs).cloned()
    modality = (run.modality_ids.clone() > 0) & call.mask
    check_groups(modality, call.mask)
    return call, modality


def open_stream(run: Run, call: DecoderCall, channels: Sequence[Channel], composite: str) -> DualStream:
    reserve = int(getattr(run.config, "max_length", 0) or 0) - call.length
    return DualStream(run.adapter, call, channels, COMPOSITES[composite], reserve=max(16, min(reserve, 4096)))


def check_composite(name: str) -> None:
    if name not in ("attnlrp", "cp-lrp"):
        raise SettingError(f"composite {name!r} has no forward twin", hint="attnlrp or cp-lrp")


def percept(run: Run, row: int) -> Modality:
    """The modality that the row's percept mostly is."""
    ids = run.modality_ids[row]
    counts = torch.bincount(ids[ids > 0], minlength=len(MODALITIES))
    return MODALITIES[int(counts.argmax())]


def explainer(
    run: Run, plain: Tensor, phi: Tensor, *, opened: Tensor | None = None, losses: dict[str, tuple[float, ...]] | None = None
) -> Callable[[int, int], Detail]:
    """(row, token) -> Detail: shares, top candidates and the flag, from logits and Phi_M ``[B, V]``.

    The share is the group share ``|Phi_M| / (|Phi_M| + |l - Phi_M|)`` of the token's logit. A token is flagged when the
    percept speaks against it (its Phi_M is below the vocabulary's mean, which no choice depends on) while it speaks for
    a rival among the top candidates.
    """

    def explain(row: int, token: int) -> Detail:
        logits, support = plain[row], phi[row]
        share = float(group_share(logits[token], support[token]))
        best = logits.topk(TOP).indices
        centred = support - support.mean()
        rivals = centred[best[best != token]]
        kind = percept(run, row)
        return Detail(
            shares={kind: share, "text": 1 - share},
            intervened=bool(opened[row]) if opened is not None else False,
            plain=int(logits.argmax()),
            losses=losses or {},
            candidates=tuple((int(t), float(logits[t]), float(support[t])) for t in best),
            flagged=bool(centred[token] < 0) and bool((rivals > 0).any()),
        )

    return explain


