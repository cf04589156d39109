"""Faithfulness of attributions: insertion and deletion curves of several methods on a benchmark question.

The explained decision is the first token of the answer (yes or no) by the plain model, without a strategy's offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limelight.benchmarks.scorers.grounding import perturbation
from limelight.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from limelight.models.adapter import Adapter
    from limelight.models.runtime.capture import DecoderCall

RANDOM = "random"
GRADIENT_NORM = "gradient-norm"
STEPS = 10


def methods_of(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of attribution methods: composites, and the controls ``random`` and ``gradient-norm``."""
    from limelight.relevance.composites import COMPOSITES

    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    known = [*COMPOSITES, GRADIENT_NORM, RANDOM]
    unknown = [n for n in names if n not in known]
    if unknown:
        raise SettingError(f"unknown attribution {unknown[0]!r}", hint=f"one of {', '.join(known)}")
    return names


def curves(
    adapter: Adapter,
    messages: Sequence[Mapping[str, Any]],
    token: int,
    methods: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    thoughts: Sequence[int] = (),
) -> dict[str, dict[str, list[float]]]:
    """Compute for each method the ``relevance`` of the media positions, and p(token) along ``insertion`` and ``deletion``.

    ``thoughts``: token ids generated before the token, treated as part of the prompt. Both curves have ``steps + 1``
    values at equal fractions of positions (one per position when there are fewer).
    """
    import torch

    from limelight.relevance.attribute import relevance_of
    from limelight.relevance.composites import COMPOSITES
    from limelight.relevance.perturb import decision, perceptual

    prompt = adapter.prepare(messages)
    call = adapter.capture(prompt.tensors)
    positions = perceptual(prompt.spans)
    if call.front:  # states that cross-attention reads, those of padding left out
        seen = call.modality(adapter.modality_ids(prompt.tensors)) > 0
        positions = (seen & call.mask)[0].nonzero()[:, 0].tolist()
    prefix = torch.tensor([list(thoughts)], dtype=torch.long, device=call.embeds.device)
    for j in range(len(thoughts)):
        with torch.no_grad():
            call = call.appended(adapter.embed(prefix[:, j : j + 1]))
    ask = decision(adapter, call, positions, token)
    found = {}
    for name in methods:
        if name == RANDOM:
            scores = np.random.default_rng(seed).standard_normal(len(positions))
        elif name == GRADIENT_NORM:
            scores = gradient_norm(adapter, call, token)[positions].double().numpy()
        else:
            at = [(call.length - 1, token)]
            (relevance,) = relevance_of(
                adapter,
                call,
                prompt.tensors,
                at,
                composite=COMPOSITES[name],
                generated=prefix[0],
                prompt_spans=prompt.spans,
            )
            scores = relevance.scores[positions].double().numpy()
        found[name] = {
            "relevance": scores.tolist(),
            "insertion": list(perturbation(scores, ask, "insertion", steps=steps).values),
            "deletion": list(perturbation(scores, ask, "deletion", steps=steps).values),
        }
    return found


def gradient_norm(adapter: Adapter, call: DecoderCall, token: int) -> Tensor:
    """``[T]``: the norm of the plain gradient of the token's logit at each position, which knows no input and no rule."""
    import torch

    from limelight.relevance.attribute import following_rules
    from limelight.relevance.composites import GRADIENT_INPUT

    with following_rules(adapter, GRADIENT_INPUT, call) as leaves:
        logits = adapter.logits(adapter.hidden(leaves.call, leaves.embeds)[:, -1])
        (grad,) = torch.autograd.grad(logits[0, token], leaves.embeds)
    found: Tensor = grad[0].norm(dim=-1).detach().cpu()
    return found
