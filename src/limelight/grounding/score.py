"""The grounding score: how far the media speak for a token, measured against the whole vocabulary.

``Phi_M(v)`` (:mod:`limelight.relevance.forward.stream`) is the media's part of the logit of token ``v``. Its value alone says
little, because what the media add to every token alike decides nothing; so it is compared with its distribution over the
vocabulary: ``z = (Phi_M(v) - mean_V Phi_M) / std_V Phi_M``. Source: this library.

Shapes: ``phi`` and ``logits`` ``[..., V]``, ``tokens`` ``[...]``; ``counted`` bool ``[V]`` or ``[..., V]``. Results are float32 or
better. Every function is pure.

Which entries make up the vocabulary: those that the tokenizer knows (rows of the output embedding beyond them are padding),
whose Phi is finite, and whose logit is not ``-inf``. Mean, standard deviation (of the population) and ranks are taken over
these alone. An entry that is not counted still has a score where its Phi is finite, and NaN where it is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limelight.calibration import THRESHOLD
from limelight.errors import SettingError

# THRESHOLD is the flag's without a calibration. On the captions of the vision miniature (dev) it catches 82 % of the invented
# objects, and flags no true one and 2 % of the other words.
POSSIBLE = 1e-3  # the least probability of a rival


def counted(phi: Tensor, logits: Tensor | None = None, known: int | None = None) -> Tensor:
    """bool ``[..., V]``: the entries that make up the vocabulary.

    Args:
        known: ids from here on have no token in the tokenizer (None: all have).
    """
    found = torch.isfinite(phi)
    if logits is not None:
        found = found & ~torch.isneginf(logits)
    if known is not None and 0 < known < phi.shape[-1]:
        found = found & (torch.arange(phi.shape[-1], device=phi.device) < known)
    return found


def moments(phi: Tensor, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of Phi over the counted entries, each ``[..., 1]``.

    A standard deviation within the rounding of Phi is 0: the media do not tell the tokens apart. NaN where nothing counts.
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


def centred(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """``Phi - mean_V Phi`` ``[..., V]``, in units of the logit."""
    return _finite(phi) - moments(phi, among)[0]


def z_score(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """``(Phi - mean_V Phi) / std_V Phi`` ``[..., V]``; 0 where the media do not tell the tokens apart."""
    return _standardised(_finite(phi), *moments(phi, among))


def rank(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """The part of the counted entries whose Phi is lower, ties counted half: ``[..., V]`` in [0, 1]."""
    wide = _finite(phi)
    among = counted(phi) if among is None else among.expand(phi.shape)
    held = wide.masked_fill(~among, torch.inf).sort(dim=-1).values  # those that do not count lie behind all others
    number = among.sum(-1, keepdim=True)
    low, high = (torch.searchsorted(held, wide, right=right).minimum(number) for right in (False, True))
    return torch.where(wide.isnan(), wide, (low + high).to(wide.dtype) / (2 * number))


def raw(phi: Tensor, among: Tensor | None = None) -> Tensor:
    """Phi itself, in units of the logit."""
    return _wide(phi)


SCORES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "z": z_score, "centred": centred, "rank": rank, "phi": raw
}  # fmt: skip


def check_score(name: str) -> None:
    """Raise SettingError unless there is such a score."""
    if name not in SCORES:
        raise SettingError(f"unknown score {name!r} of grounding", hint=f"one of {', '.join(SCORES)}")


def scores(name: str, phi: Tensor, among: Tensor | None = None) -> Tensor:
    """A score of :data:`SCORES` for every token of the vocabulary ``[..., V]``.

    Raises:
        SettingError: unknown name.
    """
    check_score(name)
    return SCORES[name](phi, among)


def token_score(phi: Tensor, tokens: Tensor, among: Tensor | None = None) -> Tensor:
    """z of one token a row, ``tokens`` ``[...]``: the same as ``z_score`` there, without its ``[..., V]``."""
    chosen = _finite(phi.gather(-1, tokens[..., None]))
    return _standardised(chosen, *moments(phi, among))[..., 0]


def rival_score(z: Tensor, logits: Tensor, tokens: Tensor, possible: float = POSSIBLE) -> Tensor:
    """The highest z of another token to which the model gives a probability of at least ``possible`` ``[...]``.

    ``-inf`` where no other token is possible. ``z``: of every token ``[..., V]``; ``logits``: the unchanged model's.
    """
    others = (torch.softmax(_wide(logits), dim=-1) >= possible) & ~z.isnan()
    others = others.scatter(-1, tokens[..., None], False)
    return z.masked_fill(~others, -torch.inf).amax(-1)


def flagged(
    z: Tensor, rival: Tensor, threshold: float = THRESHOLD, *, needs_rival: bool = True, margin: float = 0.0
) -> Tensor:
    """bool ``[...]``: a token's z lies below the threshold, while a rival's (:func:`rival_score`) reaches it, less ``margin``.

    Where the choice is one of grammar ("of" behind "a picture"), the media support no token that the model finds possible,
    and a low score is no sign of an invention: hence the rival. ``needs_rival=False`` asks for none: for transcripts, where
    every word must be heard.
    """
    low = z < threshold
    return low & (rival >= threshold - margin) if needs_rival else low


def _standardised(phi: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    flat = deviation == 0
    out = (phi - mean) / torch.where(flat, torch.ones_like(deviation), deviation)
    return torch.where(flat & ~out.isnan(), torch.zeros_like(out), out)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _finite(phi: Tensor) -> Tensor:
    """Phi with NaN where it is not finite."""
    wide = _wide(phi)
    return wide.masked_fill(~torch.isfinite(wide), float("nan"))
