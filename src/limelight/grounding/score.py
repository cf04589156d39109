"""The grounding score: how strongly the media support a token, relative to the whole vocabulary.

``Phi_M(v)`` (:mod:`limelight.relevance.forward.stream`) is the media's part of the logit of token ``v``. Its value alone is
not informative, because a constant added to every token does not affect the choice; so it is standardised over the
vocabulary: ``z = (Phi_M(v) - mean_V Phi_M) / std_V Phi_M``. Source: this library.

Shapes: ``phi`` and ``logits`` ``[..., V]``, ``tokens`` ``[...]``; ``counted`` bool ``[V]`` or ``[..., V]``. Results are float32 or
wider. Every function is pure.

The vocabulary consists of the entries that the tokenizer knows (further rows of the output embedding are padding), whose
Phi is finite, and whose logit is not ``-inf``. Mean, population standard deviation and ranks are computed over these
only. An entry that is not counted still has a score if its Phi is finite, otherwise NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limelight.calibration import THRESHOLD
from limelight.errors import SettingError

# THRESHOLD is used for the flag without a calibration. On the captions of the vision miniature (dev) it flags 82 % of the
# invented objects, no true object and 2 % of the other words.
POSSIBLE = 1e-3  # minimum probability of a rival


def counted(phi: Tensor, logits: Tensor | None = None, known: int | None = None) -> Tensor:
    """Return a mask ``[..., V]`` of the entries that make up the vocabulary.

    Args:
        known: first id without a token in the tokenizer (None: all ids have one).
    """
    found = torch.isfinite(phi)
    if logits is not None:
        found = found & ~torch.isneginf(logits)
    if known is not None and 0 < known < phi.shape[-1]:
        found = found & (torch.arange(phi.shape[-1], device=phi.device) < known)
    return found


def moments(phi: Tensor, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of Phi over the counted entries, each ``[..., 1]``.

    A standard deviation within rounding error of Phi is set to 0: Phi is constant. NaN if no entry is counted.
    """
    phi = _wide(phi)
    among = counted(phi) if among is None else among.expand(phi.shape)
    number = among.sum(-1, keepdim=True)
    values = phi.masked_fill(~among, 0.0)
    mean = values.sum(-1, keepdim=True) / number
    centre = (values - mean).masked_fill(~among, 0.0)
    deviation = (centre.square().sum(-1, keepdim=True) / number).sqrt()
    rounding = 32 * torch.finfo(phi.dtype).eps * values.abs().amax(-1, keepdim=True)
    return mean, torch.where(deviation > rounding, deviation, torch.zeros_like(deviation))


def moments_of_known(phi: Tensor, known: int | None = None) -> tuple[Tensor, Tensor]:
    """Return :func:`moments` over the first ``known`` entries of a finite Phi, in few passes over it, each of which a CPU
    vectorises (``var_mean`` and ``aminmax`` along a dimension take twenty times as long)."""
    phi = _wide(phi[..., :known])
    mean = phi.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(phi - mean, dim=-1, keepdim=True) / math.sqrt(phi.shape[-1])
    largest = torch.maximum(phi.amax(-1, keepdim=True), -phi.amin(-1, keepdim=True))
    rounding = 32 * torch.finfo(phi.dtype).eps * largest
    return mean, torch.where(deviation > rounding, deviation, torch.zeros_like(deviation))


def centred(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """Compute ``Phi - mean_V Phi`` ``[..., V]``, in units of the logit."""
    return _finite(phi) - moments(phi, among)[0]


def z_score(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """Compute ``(Phi - mean_V Phi) / std_V Phi`` ``[..., V]``; 0 where Phi is constant over the vocabulary."""
    return standardised(_finite(phi), *moments(phi, among))


def rank(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """Return the fraction of counted entries with a lower Phi, ties counting half: ``[..., V]`` in [0, 1]."""
    wide = _finite(phi)
    among = counted(phi) if among is None else among.expand(phi.shape)
    ordered = wide.masked_fill(~among, torch.inf).sort(dim=-1).values  # uncounted entries are sorted last
    number = among.sum(-1, keepdim=True)
    low, high = (torch.searchsorted(ordered, wide, right=right).minimum(number) for right in (False, True))
    return torch.where(wide.isnan(), wide, (low + high).to(wide.dtype) / (2 * number))


def raw(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """Return Phi itself, in units of the logit."""
    return _wide(phi)


SCORES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "z": z_score, "centred": centred, "rank": rank, "phi": raw
}  # fmt: skip


def check_score(name: str) -> None:
    """Raise SettingError for an unknown score name."""
    if name not in SCORES:
        raise SettingError(f"unknown grounding score {name!r}", hint=f"use one of {', '.join(SCORES)}")


def scores(name: str, phi: Tensor, among: Tensor | None = None) -> Tensor:
    """Compute a score of :data:`SCORES` for every token of the vocabulary ``[..., V]``.

    Raises:
        SettingError: unknown name.
    """
    check_score(name)
    return SCORES[name](phi, among)


def rival_score(z: Tensor, logits: Tensor, tokens: Tensor, possible: float = POSSIBLE) -> Tensor:
    """Return the highest z ``[...]`` among the other tokens with a probability of at least ``possible``.

    ``-inf`` if there is none. ``z``: of every token ``[..., V]``; ``logits``: the unchanged model's.
    """
    return highest_other(z.masked_fill(z.isnan(), -torch.inf), torch.softmax(_wide(logits), dim=-1), tokens, possible)


def highest_other(values: Tensor, probabilities: Tensor, tokens: Tensor, possible: float = POSSIBLE) -> Tensor:
    """Return :func:`rival_score` of values without NaN, given the probabilities ``[..., V]``."""
    others = (probabilities >= possible).scatter_(-1, tokens[..., None], False)
    return torch.where(others, values, -torch.inf).amax(-1)


def flagged(
    z: Tensor, rival: Tensor, threshold: float = THRESHOLD, *, needs_rival: bool = True, margin: float = 0.0
) -> Tensor:
    """Return a mask ``[...]``: z is below the threshold and a rival's z (:func:`rival_score`) at least threshold - ``margin``.

    Where the choice is grammatical ("of" after "a picture"), the media support none of the plausible tokens, and a low
    score does not indicate a hallucination; hence the condition on the rival. ``needs_rival=False`` drops it, for
    transcripts, where every word must be supported by the audio.
    """
    low = z < threshold
    return low & (rival >= threshold - margin) if needs_rival else low


def standardised(phi: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return ``(phi - mean) / deviation``: 0 where the deviation is 0; NaN and infinite values are kept."""
    flat = deviation == 0
    out = (phi - mean) / torch.where(flat, torch.ones_like(deviation), deviation)
    return torch.where(flat & out.isfinite(), torch.zeros_like(out), out)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _finite(phi: Tensor) -> Tensor:
    """Return Phi with NaN where it is not finite."""
    wide = _wide(phi)
    return wide.masked_fill(~torch.isfinite(wide), float("nan"))
