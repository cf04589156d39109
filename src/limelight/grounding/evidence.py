"""What every token of a finished answer rests on: scores of its relevance, beside the published detectors.

One number a token and score; the higher, the better the media support the token. The benchmark of detection
(:mod:`limelight.benchmarks.scorers.detection`) compares them.

From the dual forward, which knows Phi_M of every token of the vocabulary: ``Phi``, ``centred``, ``z``, ``margin`` (to the
best other candidate) and ``contribution`` (``|Phi| / (|Phi| + |l - Phi|)``). From a backward pass of each composite:
``NAME Phi``, ``NAME share`` (of ``sum |R|``) and ``NAME region``: the largest part of ``sum |R|`` that lies with a positive
sign inside any one region of about a sixth of the media.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.grounding.baselines.observation import Observation, answered, observe
from limelight.grounding.baselines.scores import BASELINES
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import relevance_of
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, Composite
from limelight.relevance.forward.stream import DualStream, modality_channel
from limelight.types import Prompt, Relevance, Span

REGION = 1 / 6  # of the media's positions: about what an object covers in a picture of several
Scores = dict[str, list[float]]


def evidence_of(
    adapter: Adapter,
    prompt: Prompt,
    tokens: Sequence[int],
    *,
    composites: Sequence[str] = ("attnlrp", "cp-lrp"),
    forward: Sequence[str] = ("attnlrp", "cp-lrp"),
    without: Prompt | None = None,
) -> Scores:
    """Scores of each token of an answer, by name: ours and the published baselines.

    Args:
        tokens: the answer's ``n`` ids, whoever wrote it.
        composites: those attributed by a backward pass a token.
        forward: those measured in forward mode; scores of all but ``attnlrp`` carry the composite's name.
        without: the prompt without its media, for the baseline PMI.

    Returns:
        name -> ``n`` numbers, NaN where a score is not defined. Scores that the model does not allow are left out.

    Raises:
        SettingError: no tokens, or no such composite.
        HookError, UnknownKindError: see :func:`limelight.attribute`.
    """
    found: Scores = {}
    try:
        seen = observe(adapter, prompt.tensors, tokens, without=None if without is None else without.tensors)
    except UnsupportedError:  # several residual streams: the relevance needs no single hidden state
        pass
    else:
        found |= {name: _listed(score(seen)) for name, score in BASELINES.items()}
    for name in forward:
        try:
            logits, phi = forward_relevance(adapter, prompt.tensors, tokens, COMPOSITES[name])
        except (UnknownKindError, UnsupportedError):
            continue
        before = "" if name == ATTN_LRP.name else f"{name} "
        found |= {f"{before}{k}": v for k, v in against_vocabulary(logits, phi, tokens).items()}
    for name in composites:
        found |= attributed(adapter, prompt, tokens, name)
    return found


def forward_relevance(
    adapter: Adapter, inputs: Mapping[str, Any], tokens: Sequence[int], composite: Composite = ATTN_LRP
) -> tuple[Tensor, Tensor]:
    """Logits and Phi_M ``[n, V]`` at each token of an answer, without a backward pass.

    Raises:
        UnknownKindError, UnsupportedError: the model or the composite has no forward mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        call = adapter.capture(inputs).cloned()
        modality = (call.modality(adapter.modality_ids(inputs)).to(call.mask.device) > 0) & call.mask
        stream = DualStream(adapter, call, [modality_channel(modality, call.mask)], composite, reserve=len(tokens) + 1)
        rows = [stream.heads(stream.prefill())]
        for token in tokens[:-1]:
            stream.append(torch.tensor([int(token)], device=call.embeds.device))
            rows.append(stream.heads(stream.current()))
    return torch.cat([logits for logits, _ in rows]), torch.cat([phi[0] for _, phi in rows])


def against_vocabulary(logits: Tensor, phi: Tensor, tokens: Sequence[int]) -> Scores:
    """Phi_M of each token alone, against the vocabulary's mean and spread, and against the best other candidate."""
    ids = torch.tensor(list(tokens), device=phi.device)[:, None]
    own = phi.gather(-1, ids)[:, 0]
    centred = own - phi.mean(-1)
    rival = logits.scatter(-1, ids, -math.inf).argmax(-1, keepdim=True)
    rest = (logits.gather(-1, ids)[:, 0] - own).abs()
    found = {
        "Phi": own,
        "centred": centred,
        "z": centred / phi.std(-1, correction=0).clamp_min(1e-12),
        "margin": own - phi.gather(-1, rival)[:, 0],
        "contribution": own.abs() / (own.abs() + rest).clamp_min(1e-12),
    }
    return {name: _listed(values) for name, values in found.items()}


def attributed(adapter: Adapter, prompt: Prompt, tokens: Sequence[int], name: str) -> Scores:
    """Signed sum, share and densest region of the media's relevance: one forward, and a backward pass a token."""
    with torch.inference_mode(False), torch.no_grad():
        call, ids = answered(adapter, prompt.tensors, tokens)
    start = call.length - len(tokens) - 1
    targets = [(start + j, int(token)) for j, token in enumerate(tokens)]
    rows = relevance_of(
        adapter, call, prompt.tensors, targets, composite=name, generated=ids[0], prompt_spans=prompt.spans or None
    )
    return {
        f"{name} Phi": [_media(r, r.scores) for r in rows],
        f"{name} share": [_share(r) for r in rows],
        f"{name} region": [region(r) for r in rows],
    }


def region(relevance: Relevance) -> float:
    """The largest part of ``sum |R|`` that lies, with a positive sign, inside any one region of the media.

    A region is a square of cells of a picture (of each frame of a film) or a stretch of a sound, of about
    :data:`REGION` of its span. Source: faithful tokens rest on one region, invented ones on none (Nguyen et al., "Beyond
    the Global Scores", arXiv 2604.04863, finding 1), taken on relevance instead of attention.
    """
    whole = float(relevance.scores.abs().sum())
    best = max((_densest(relevance.scores, s) for s in relevance.spans if s.modality != "text"), default=0.0)
    return best / whole if whole else 0.0


def _densest(scores: Tensor, span: Span) -> float:
    heat = scores[span.start : span.stop].clamp_min(0).double()
    if span.grid is not None:
        heat = heat.reshape(-1, *span.grid[-2:])[..., : span.cells[1]]
        sides = [max(1, round(n * math.sqrt(REGION))) for n in heat.shape[1:]]
        windows = heat.unfold(1, sides[0], 1).unfold(2, sides[1], 1)
        return float(windows.sum((-2, -1)).max())
    return float(heat.unfold(0, max(1, round(len(heat) * REGION)), 1).sum(-1).max())


def _media(relevance: Relevance, values: Tensor) -> float:
    return sum(float(values[s.start : s.stop].sum()) for s in relevance.spans if s.modality != "text")


def _share(relevance: Relevance) -> float:
    whole = float(relevance.scores.abs().sum())
    return _media(relevance, relevance.scores.abs()) / whole if whole else 0.0


def _listed(values: Tensor) -> list[float]:
    return [float(v) for v in values.double().cpu()]


__all__ = ["Observation", "against_vocabulary", "attributed", "evidence_of", "forward_relevance", "region"]
