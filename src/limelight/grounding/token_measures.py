"""What the meter says of given tokens: contributions, grounding, rival, flag and top candidates, from logits and Phi_M.

The same for tokens as they are generated (:mod:`limelight.decoding.dual`) and for finished answers
(:mod:`limelight.auditing.forward`). Scores are defined in :mod:`limelight.grounding.score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limelight.calibration import Calibration, flag_rule
from limelight.grounding import score
from limelight.types import EARLIER_ANSWERS

TOP = 5  # candidates


def token_measures(
    tokens: Tensor,
    logits: Tensor,
    phi: Tensor,
    kinds: Sequence[str],
    groups: Mapping[str, Tensor],
    *,
    known: int | None,
    calibration: Calibration | None,
    probabilities: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return for each token the fields of :class:`limelight.types.Step` that the meter measures, candidates without texts.

    A contribution is the group share ``|Phi_g| / (sum_g |Phi_g| + |l - sum_g Phi_g|)`` of the token's logit ``l``; the rest is
    the text's.

    Args:
        tokens: int64 ``[N]``.
        logits, phi: at each token's position, ``[N, V]``; both finite.
        kinds: the modalities of the media; without any there is no grounding.
        groups: Phi ``[N, V]`` of each modality if there are several, and of earlier answers.
        known: first id without a token in the tokenizer (None: all have one).
        probabilities: softmax of the logits, if it is known, ``[N, V]``.
    """

    def chosen(values: Tensor) -> Tensor:
        return values.gather(-1, tokens[:, None])[:, 0]

    def standardised(values: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
        return score.standardised(values[:, None], *moments)[:, 0]

    moments = score.moments_of_known(phi, known)
    z = standardised(chosen(phi), moments)
    probabilities = torch.softmax(logits, dim=-1) if probabilities is None else probabilities
    rival = standardised(score.highest_other(phi, probabilities, tokens), moments)
    rule = flag_rule(calibration)
    flags = score.flagged(z, rival, **{k: rule[k] for k in ("threshold", "needs_rival", "margin")}).tolist()
    support = (chosen(phi).to(moments[0].dtype) - moments[0][:, 0]).tolist()
    by_kind = {
        k: standardised(chosen(groups[k]), score.moments_of_known(groups[k], known)) if k in groups else z
        for k in kinds
    }
    parts = {k: chosen(groups.get(k, phi)).double() for k in kinds}
    if EARLIER_ANSWERS in groups:
        parts[EARLIER_ANSWERS] = chosen(groups[EARLIER_ANSWERS]).double()
    rest = chosen(logits).double() - sum(parts.values(), torch.zeros_like(tokens, dtype=torch.double))
    total = sum((v.abs() for v in parts.values()), rest.abs()).clamp_min(1e-12)
    shares = {k: (v.abs() / total).tolist() for k, v in parts.items()}
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    tied = best.values.shape[-1] > 1 and bool((best.values[:, 0] == best.values[:, 1]).any())
    plain = (logits.argmax(-1) if tied else best.indices[:, 0]).tolist()  # of equal ones, argmax takes the first
    lent = phi.gather(-1, best.indices).tolist()
    own, against, by_modality = z.tolist(), rival.tolist(), {k: v.tolist() for k, v in by_kind.items()}
    found = []
    for i in range(len(tokens)):
        contributions = {k: v[i] for k, v in shares.items()}
        grounding = _finite(own[i]) if kinds else None
        found.append(
            {
                "plain": plain[i],
                "candidates": tuple(zip(best.indices[i].tolist(), best.values[i].tolist(), lent[i], strict=True)),
                "contributions": {**contributions, "text": 1 - sum(contributions.values())},
                "flagged": bool(kinds) and flags[i],
                "grounding": grounding,
                "rival_grounding": _finite(against[i]) if kinds else None,
                "grounding_by_modality": {k: v[i] for k, v in by_modality.items() if math.isfinite(v[i])},
                "support": _finite(support[i]) if kinds else None,
                "p_supported": None if calibration is None or grounding is None else calibration.probability(grounding),
            }
        )
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
