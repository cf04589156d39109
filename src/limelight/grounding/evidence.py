"""Evidence scores for every token of a finished answer: relevance-based scores and published hallucination detectors.

One number per token and score; higher means better supported by the media. The detection benchmark
(:mod:`limelight.benchmarks.scorers.detection`) compares them.

From the dual forward, which computes Phi_M of every token of the vocabulary: ``Phi``, ``z``, ``centred`` and ``rank``
(:mod:`limelight.grounding.score`), ``margin`` (to the best other candidate) and ``contribution``
(``|Phi| / (|Phi| + |l - Phi|)``). From one backward pass per composite: ``NAME Phi``, ``NAME share`` (of ``sum |R|``) and
``NAME region``: the largest fraction of ``sum |R|`` that is positive and inside a single region of the media.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.grounding import score
from limelight.grounding.baselines.observation import Observation, answered, observe
from limelight.grounding.baselines.scores import BASELINES
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.models.spans import grown
from limelight.relevance.attribute import following_rules, relevance_of
from limelight.relevance.composites import ATTN_LRP, Composite, composite_of
from limelight.relevance.forward.stream import DualStream, modality_channel
from limelight.types import Prompt, Span

TOGETHER = 16  # targets attributed in one batch
REGION = 1 / 6  # of the media's positions: roughly the area of one object in an image of several
Scores = dict[str, list[float]]


def evidence_of(
    adapter: Adapter,
    prompt: Prompt,
    tokens: Sequence[int],
    *,
    composites: Sequence[str] = ("attnlrp", "cp-lrp"),
    without: Prompt | None = None,
    only: Sequence[int] | None = None,
) -> Scores:
    """Compute our scores and the published baselines for each token of an answer, by name.

    Args:
        tokens: the answer's ``n`` ids, whoever wrote it.
        composites: measured in forward mode, where they have one, and by a backward pass a token; scores in forward mode of
            all but ``attnlrp`` carry the composite's name.
        without: the prompt without its media, for the baseline PMI.
        only: the tokens (0 to n - 1) for which backward passes are made; the others' scores by them are NaN.

    Returns:
        name -> ``n`` numbers, NaN where a score is not defined. Scores that the model does not allow are left out (such as
        those of ``pa-lrp`` where positions do not rotate).

    Raises:
        SettingError: no tokens, or no such composite.
        HookError, UnknownKindError: see :func:`limelight.attribute`.
    """
    chosen = [composite_of(name) for name in composites]
    with adapter.listed():  # rules are built once for all of them
        with torch.inference_mode(False), torch.no_grad():
            call = adapter.capture(prompt.tensors).cloned()
        found: Scores = {}
        try:
            seen = observe(
                adapter, prompt.tensors, tokens, call=call, without=None if without is None else without.tensors
            )
        except UnsupportedError:  # several residual streams: the relevance needs no single hidden state
            pass
        else:
            found |= {name: _to_list(measure(seen)) for name, measure in BASELINES.items()}
        known = None if adapter.tokenizer is None else len(adapter.tokenizer)
        for composite in chosen:
            try:
                logits, phi = forward_relevance(adapter, prompt.tensors, tokens, composite, call=call)
            except (UnknownKindError, UnsupportedError):
                continue
            before = "" if composite is ATTN_LRP else f"{composite.name} "
            found |= {f"{before}{k}": v for k, v in against_vocabulary(logits, phi, tokens, known).items()}
        for composite in chosen:
            try:  # the forward Phi is of every token
                found = attributed(adapter, prompt, tokens, composite, only, call=call) | found
            except (UnknownKindError, UnsupportedError):
                if composite is ATTN_LRP:
                    raise
        if "Phi" in found:
            found.pop(f"{ATTN_LRP.name} Phi", None)  # the same number
        return found


def forward_relevance(
    adapter: Adapter,
    inputs: Mapping[str, Any],
    tokens: Sequence[int],
    composite: Composite = ATTN_LRP,
    *,
    call: DecoderCall | None = None,
) -> tuple[Tensor, Tensor]:
    """Return logits and Phi_M ``[n, V]`` at each token of an answer, without a backward pass; ``call``: the captured prompt.

    Raises:
        UnknownKindError, UnsupportedError: the model or the composite has no forward mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        call = adapter.capture(inputs).cloned() if call is None else call
        media = (call.modality(adapter.modality_ids(inputs)).to(call.mask.device) > 0) & call.mask
        stream = DualStream(adapter, call, [modality_channel(media, call.mask)], composite, reserve=len(tokens) + 1)
        rows = [stream.heads(stream.prefill())]
        for token in tokens[:-1]:
            stream.append(torch.tensor([int(token)], device=call.embeds.device))
            rows.append(stream.heads(stream.current()))
    return torch.cat([logits for logits, _ in rows]), torch.cat([phi[0] for _, phi in rows])


def against_vocabulary(logits: Tensor, phi: Tensor, tokens: Sequence[int], known: int | None = None) -> Scores:
    """Compute the forward scores of each token: Phi_M, relative to the vocabulary, and to the best other candidate.

    Args:
        known: first id without a token in the tokenizer (:func:`limelight.grounding.score.counted`).
    """
    ids = torch.tensor(list(tokens), device=phi.device)[:, None]
    among = score.counted(phi, logits, known)
    own = phi.gather(-1, ids)[:, 0]
    rival = logits.scatter(-1, ids, -math.inf).argmax(-1, keepdim=True)
    rest = (logits.gather(-1, ids)[:, 0] - own).abs()
    found = {
        "Phi": own,
        **{n: score.scores(n, phi, among).gather(-1, ids)[:, 0] for n in ("z", "centred", "rank")},
        "margin": own - phi.gather(-1, rival)[:, 0],
        "contribution": own.abs() / (own.abs() + rest).clamp_min(1e-12),
    }
    return {name: _to_list(values) for name, values in found.items()}


def attributed(
    adapter: Adapter,
    prompt: Prompt,
    tokens: Sequence[int],
    composite: Composite,
    only: Sequence[int] | None = None,
    *,
    call: DecoderCall | None = None,
) -> Scores:
    """Compute signed sum, share and densest region of the media's relevance with a composite's backward pass; see
    :func:`evidence_of`."""
    name = composite.name
    with torch.inference_mode(False), torch.no_grad():
        call, ids = answered(adapter, prompt.tensors, tokens, call=call)
    start = call.length - len(tokens) - 1
    wanted = range(len(tokens)) if only is None else sorted(set(only))
    targets = [(start + j, int(tokens[j])) for j in wanted]
    if call.cross_attention is None:
        spans = grown(prompt.spans or adapter.spans(prompt.tensors), call.length)
        rows = [(scores, spans) for scores in _together(adapter, call, targets, composite)]
    else:
        found = relevance_of(
            adapter,
            call,
            prompt.tensors,
            targets,
            composite=composite,
            generated=ids[0],
            prompt_spans=prompt.spans or None,
        )
        rows = [(r.scores, r.spans) for r in found]
    by_token = dict(zip(wanted, rows, strict=True))

    def each(measure: Callable[[Tensor, Sequence[Span]], float]) -> list[float]:
        return [measure(*by_token[j]) if j in by_token else math.nan for j in range(len(tokens))]

    return {f"{name} Phi": each(_media), f"{name} share": each(_share), f"{name} region": each(region)}


def _together(
    adapter: Adapter, call: DecoderCall, targets: Sequence[tuple[int, int]], composite: Composite
) -> list[Tensor]:
    """Return relevance ``[T]`` per target, with one forward and one backward for several targets as rows of a batch."""
    found: list[Tensor] = []
    for at in range(0, len(targets), TOGETHER):
        part = targets[at : at + TOGETHER]
        wide = call.reordered(torch.zeros(len(part), dtype=torch.long, device=call.embeds.device))
        with following_rules(adapter, composite, wide) as leaves:
            hidden = adapter.hidden(leaves.call, leaves.embeds)
            each = [adapter.logits(hidden[n : n + 1, i : i + 1])[0, 0, token] for n, (i, token) in enumerate(part)]
            found += leaves.relevance(torch.stack(each).sum()).detach().cpu()
    return found


def region(scores: Tensor, spans: Sequence[Span]) -> float:
    """Return the largest fraction of ``sum |R|`` that is positive and inside a single region of the media.

    A region is a rectangle of cells of an image (or a video frame) or an interval of audio, of about :data:`REGION` of
    its span. Source: faithful tokens attend to one region, hallucinated ones to none (Nguyen et al., "Beyond the Global
    Scores", arXiv 2604.04863, finding 1), here computed on relevance instead of attention.
    """
    total = float(scores.abs().sum())
    best = max((_densest(scores, s) for s in spans if s.modality != "text"), default=0.0)
    return best / total if total else 0.0


def _densest(scores: Tensor, span: Span) -> float:
    heat = scores[span.start : span.stop].clamp_min(0).double()
    if span.grid is not None:
        heat = heat.reshape(-1, *span.grid[-2:])[..., : span.cells[1]]
        sides = [max(1, round(n * math.sqrt(REGION))) for n in heat.shape[1:]]
        windows = heat.unfold(1, sides[0], 1).unfold(2, sides[1], 1)
        return float(windows.sum((-2, -1)).max())
    return float(heat.unfold(0, max(1, round(len(heat) * REGION)), 1).sum(-1).max())


def _media(values: Tensor, spans: Sequence[Span]) -> float:
    return sum(float(values[s.start : s.stop].sum()) for s in spans if s.modality != "text")


def _share(scores: Tensor, spans: Sequence[Span]) -> float:
    total = float(scores.abs().sum())
    return _media(scores.abs(), spans) / total if total else 0.0


def _to_list(values: Tensor) -> list[float]:
    return [float(v) for v in values.double().cpu()]


__all__ = ["Observation", "against_vocabulary", "attributed", "evidence_of", "forward_relevance", "region"]
