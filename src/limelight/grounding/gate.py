"""Gates that decide when to intervene: always, if the model is uncertain, or if the top token is poorly grounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.errors import SettingError

KINDS = ("always", "uncertain", "ungrounded")


@dataclass(frozen=True)
class Gate:
    """Decides per row whether to intervene.

    Args:
        kind: ``always``; ``uncertain``: the largest probability is below ``threshold``; ``ungrounded``: the media's
            share of the top token's logit, ``|Phi_M| / (|Phi_M| + |l - Phi_M|)``, is below ``threshold``.
    """

    kind: str = "always"
    threshold: float = 0.95

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"unknown gate {self.kind!r}", hint=f"use one of {', '.join(KINDS)}")
        if not 0 <= self.threshold <= 1:
            raise SettingError(
                f"a gate's threshold must be in [0, 1], got {self.threshold}", hint="0.95 skips confident tokens"
            )

    def opens(self, logits: Tensor, phi: Tensor) -> Tensor:
        """Return the decision, bool ``[B]``, from logits ``[B, V]`` and Phi_M ``[B, V]``."""
        if self.kind == "always":
            return torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
        if self.kind == "uncertain":
            return torch.softmax(logits, dim=-1).amax(-1) < self.threshold
        best = logits.argmax(-1, keepdim=True)
        return group_share(logits.gather(-1, best), phi.gather(-1, best))[:, 0] < self.threshold


def group_share(logit: Tensor, phi: Tensor) -> Tensor:
    """Return the media's share of a logit: ``|Phi_M| / (|Phi_M| + |l - Phi_M|)``, in [0, 1]."""
    return phi.abs() / (phi.abs() + (logit - phi).abs()).clamp_min(1e-12)
