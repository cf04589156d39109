"""Objectives for optimising the offsets: pure functions of relevance, and the KL term toward the unchanged model.

Shapes: relevance ``R`` [B, T], ``modality`` and ``valid`` bool [B, T], logits [B, V]. Each loss is ``[B]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.errors import PromptError, SettingError

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Target = Callable[[Tensor, Tensor], Tensor]


def paper_loss(relevance: Tensor, modality: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Compute ``-mean_{i in M} log_softmax(R / tau)_i``, softmax over all real positions (LIME, eq. 6).

    Relevance is signed and not normalised; generated positions are included, padding is excluded.
    """
    logp = torch.log_softmax((relevance / tau).masked_fill(~valid, float("-inf")), dim=-1)
    return -logp.masked_fill(~modality, 0.0).sum(-1) / modality.sum(-1)


def difference_loss(relevance: Tensor, modality: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Compute ``-(Phi_M - Phi_T)``: the media's part of the logit minus the text's. Ours; ``tau`` is not used."""
    sign = modality.to(relevance.dtype) * 2 - 1
    return -(relevance * sign).masked_fill(~valid, 0.0).sum(-1)


def normalised_loss(relevance: Tensor, modality: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Compute ``-log`` of the media's part in a softmax over the two groups' mean relevance, scale removed. Ours.

    The plain group softmax saturates at tau = 0.1 (gradients below Adam's eps); dividing by the detached mean absolute
    relevance of the row keeps it in range.
    """
    text = valid & ~modality
    mean_m = relevance.masked_fill(~modality, 0.0).sum(-1) / modality.sum(-1)
    mean_t = relevance.masked_fill(~text, 0.0).sum(-1) / text.sum(-1).clamp_min(1)
    scale = relevance.detach().abs().masked_fill(~valid, 0.0).sum(-1) / valid.sum(-1)
    return -torch.nn.functional.logsigmoid((mean_m - mean_t) / scale.clamp_min(1e-12))


def influence_loss(relevance: Tensor, modality: Tensor, valid: Tensor, tau: float) -> Tensor:
    """Compute ``-|Phi_M|`` of the explained quantity: the media's influence in either direction. Ours."""
    return -relevance.masked_fill(~modality, 0.0).sum(-1).abs()


def chosen_logit(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``f = l(target)`` [B], the quantity explained in the paper."""
    return logits.gather(-1, target[:, None])[:, 0]


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``f = l(top1) - l(top2)`` [B]: the decision between the two best candidates."""
    best = logits.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


@dataclass(frozen=True)
class Objective:
    """An objective: the explained quantity (``target``) and the loss on its relevance (``loss``)."""

    name: str
    loss: Loss
    target: Target = chosen_logit


PAPER = Objective("paper", paper_loss)
DIFFERENCE = Objective("difference", difference_loss)
NORMALISED = Objective("normalised", normalised_loss)
MARGIN = Objective("margin", influence_loss, margin)

OBJECTIVES = {o.name: o for o in (PAPER, DIFFERENCE, NORMALISED, MARGIN)}


def objective(name: str | Objective) -> Objective:
    """Return an objective by name.

    Raises:
        SettingError: unknown name.
    """
    if isinstance(name, Objective):
        return name
    if name not in OBJECTIVES:
        raise SettingError(f"unknown objective {name!r}", hint=f"use one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]


def kl(reference: Tensor, logits: Tensor) -> Tensor:
    """Compute ``KL(p_ref || p)`` [B] in float32 or wider; ``reference``: log-probabilities, ``logits``: raw logits."""
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    return (reference.exp() * (reference - logp)).sum(-1)


def check_groups(modality: Tensor, valid: Tensor) -> None:
    """Raise PromptError if a row has no media position to reward."""
    empty = (modality & valid).sum(-1) == 0
    if bool(empty.any()):
        raise PromptError(
            f"row {int(empty.nonzero()[0, 0])} has an empty modality span: there are no media positions",
            hint="put the media into the messages, or pass modality_ids",
        )
