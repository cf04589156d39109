"""Published scores, one number per answer token of an :class:`Observation`; higher means better supported.

    log_probability      log p(token)                                              (NLL with opposite sign)
    negative_entropy     sum_v p log p
    logit_lens           max over media positions and layers of p_lens(token)      (Jiang et al., ICLR 2025, 2410.02762)
    attention_to_media   sum of attention to the media, middle layers              (SVAR; Jiang et al., CVPR 2025, 2411.16724)
    contextual_lens      best cosine to a media position, middle layer             (Phukan et al., NAACL 2025, 2411.19187)
    glsim                .6 cosine to the prompt's end + .4 cosine to its patches  (Park and Li, NeurIPS 2025, 2508.19972)
    concentration        minus the entropy of attention over the media, middle layers (Nguyen et al., 2604.04863, finding i)
    prefix_attention     minus attention to the answer so far                      (PAS; Hoang-Xuan et al., 2511.11502)
    pmi                  log p(token | media) - log p(token | no media)

Layers and counts were published for models of 32 layers and 576 patches; they are scaled in proportion here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import torch
from torch import Tensor
from torch.nn.functional import normalize

from limelight.grounding.baselines.observation import Observation

SVAR_LAYERS = (5, 18)  # of 32
GLSIM_PATCHES = 32 / 576
GLSIM_WEIGHT = 0.6


def log_probability(seen: Observation) -> Tensor:
    return _of(seen.logits.log_softmax(-1), seen.tokens)


def negative_entropy(seen: Observation) -> Tensor:
    logp = seen.logits.log_softmax(-1)
    return (logp.exp() * logp).nan_to_num(0.0).sum(-1)  # excluded tokens (-inf) do not contribute


def logit_lens(seen: Observation) -> Tensor:
    """Internal confidence: the logit lens's largest probability of the token over media positions and layers.

    Computed layer by layer, so that only ``[positions, V]`` is in memory. NaN where media have no hidden states.
    """
    if not _readable(seen):
        return _unknown(seen)
    best = torch.zeros(len(seen.tokens), dtype=seen.logits.dtype)
    for states in seen.hidden:
        found = seen.lens(states[seen.media]).softmax(-1)[:, seen.tokens].amax(0)
        best = torch.maximum(best, found.to(best))
    return best


def attention_to_media(seen: Observation) -> Tensor:
    """Sum over the middle layers of the attention to the media, mean over heads (SVAR)."""
    return _middle(seen).sum(-1).mean(1).sum(0)


def concentration(seen: Observation) -> Tensor:
    """Minus the entropy of the attention to the media, within the media, mean over middle layers and heads.

    Source: invented tokens "yield diffuse, non-localized attention patterns" (finding i of the paper).
    Differs from the paper: it trains a classifier on statistics of the patches; this is only the statistic.
    """
    if not bool(seen.media.any()):
        return _unknown(seen)
    part = _middle(seen)
    part = part / part.sum(-1, keepdim=True).clamp_min(1e-12)
    return (part * part.clamp_min(1e-30).log()).sum(-1).mean((0, 1))


def contextual_lens(seen: Observation) -> Tensor:
    """Largest cosine between the token's own hidden state and those of the media, both from the middle layer.

    Differs from the paper: it chooses a pair of layers per model on labelled data; here it is the middle layer.
    """
    if not _readable(seen):
        return _unknown(seen)
    states = normalize(seen.hidden[len(seen.hidden) // 2], dim=-1)
    return (states[seen.own] @ states[seen.media].T).amax(-1)


def glsim(seen: Observation) -> Tensor:
    """``w cos(h_token, h_prompt end) + (1 - w) mean_k cos(h_token, h_patch)``, the k patches by the logit lens.

    As in the authors' code (w = .6; k = 32 of 576): the local part compares the token in the penultimate layer with
    patches of the last layer, the global part the prompt's end in the penultimate layer with the token in the last layer;
    the token's state is that of the position that predicted it, and the last layer is taken after the final norm.
    """
    if not _readable(seen):
        return _unknown(seen)
    before, last = seen.hidden[-2], seen.norm(seen.hidden[-1])
    text, final = normalize(before, dim=-1), normalize(last, dim=-1)
    overall = final[seen.predicting] @ text[seen.start - 1]
    patches = final[seen.media]
    count = max(1, round(GLSIM_PATCHES * len(patches)))
    head = seen.head(last[seen.media])[:, seen.tokens]  # [patches, n]; the softmax is over the vocabulary
    chances = head - seen.head(last[seen.media]).logsumexp(-1, keepdim=True)
    best = chances.topk(count, dim=0).indices  # [k, n]
    cosines = text[seen.predicting] @ patches.T  # [n, patches]
    local = cosines.gather(1, best.T).mean(-1)
    return GLSIM_WEIGHT * overall + (1 - GLSIM_WEIGHT) * local


def prefix_attention(seen: Observation) -> Tensor:
    """Minus the attention to the answer so far, mean over layers and heads (Prelim Attention Score)."""
    return -seen.attention[..., seen.start :].sum(-1).mean((0, 1))


def pmi(seen: Observation) -> Tensor:
    """Pointwise mutual information of token and media given the answer so far. NaN without the second forward."""
    if seen.without is None:
        return _unknown(seen)
    return log_probability(seen) - _of(seen.without.log_softmax(-1), seen.tokens)


BASELINES: dict[str, Callable[[Observation], Tensor]] = {
    "log-probability": log_probability,
    "entropy": negative_entropy,
    "logit lens": logit_lens,
    "attention to media": attention_to_media,
    "attention concentration": concentration,
    "contextual lens": contextual_lens,
    "GLSim": glsim,
    "attention to prefix": prefix_attention,
    "PMI": pmi,
}


def _middle(seen: Observation) -> Tensor:
    """Attention to the media in the middle layers, ``[layers, H, n, media]``."""
    depth = len(seen.attention)
    first, last = (min(depth - 1, round(i * depth / 32)) for i in SVAR_LAYERS)
    return seen.attention[first : last + 1][..., seen.media]


def _of(rows: Tensor, tokens: Tensor) -> Tensor:
    return rows.gather(-1, tokens.to(rows.device)[:, None])[:, 0]


def _readable(seen: Observation) -> bool:
    return seen.read and bool(seen.media.any())


def _unknown(seen: Observation) -> Tensor:
    return torch.full((len(seen.tokens),), nan)
