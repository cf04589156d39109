"""How the answers of several views become one: a weight for each view's logits.

mean            the views count alike
crops           as mean, without the first view
evidence        the view that departs most from what the model says of empty media: evidence in one part of a picture
                speaks for the whole, its absence in a part does not
any             where the decision is yes against no, the view that is surest of yes: for questions on whether something is
                there, which it is if any view shows it; else as evidence
second-picture  the crops are further pictures of one prompt, for models that take several
"""

from __future__ import annotations

import torch
from torch import Tensor

from limelight.models.adapter import Adapter

# Values of config.model_type whose checkpoints were trained on several pictures in one prompt.
SEVERAL_PICTURES = frozenset({
    "gemma3", "gemma3n", "gemma4", "glm4v", "idefics2", "idefics3", "internvl", "llava_onevision", "mistral3", "phi4_multimodal",
    "qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
})  # fmt: skip
SLACK = 1e-3  # views whose evidence differs by less count as equal: the earliest of them is used
JOINS = ("auto", "mean", "crops", "evidence", "any", "second-picture")


def chosen_join(adapter: Adapter, join: str, kinds: set[str]) -> str:
    """Resolve ``auto``: crops of pictures join as further pictures where the family takes several, else by evidence."""
    if join != "auto":
        return join
    return (
        "second-picture"
        if adapter.parent_model.config.model_type in SEVERAL_PICTURES and kinds == {"image"}
        else "evidence"
    )


def departure(logits: Tensor, empty: Tensor) -> Tensor:
    """How far each view ``[n, V]`` departs from the answer to empty media ``[V]``: Kullback-Leibler divergence, in nats."""
    own, base = logits.log_softmax(-1), empty.log_softmax(-1)
    terms = own.exp() * (own - base)
    return torch.where(torch.isfinite(terms), terms, torch.zeros_like(terms)).sum(-1)


def weights(join: str, views: Tensor, empty: Tensor | None, yes: Tensor | None = None) -> Tensor:
    """Weights ``[n]`` of the views' logits ``[n, V]``, the first view in front; they sum to 1.

    ``yes``: how far yes is ahead of no in each view ``[n]``, where that is the decision.
    """
    count = len(views)
    out = torch.zeros(count)
    if count == 1:
        return out + 1
    if join == "any" and yes is not None:
        out[int(yes.argmax())] = 1.0
    elif join in ("evidence", "any") and empty is not None:
        found = departure(views, empty)
        most = float(found.max())
        out[int((found >= most - SLACK * max(1.0, most)).float().argmax())] = 1.0
    elif join == "crops":
        out[1:] = 1 / (count - 1)
    elif join == "second-picture":
        out[-1] = 1.0
    else:
        out += 1 / count
    return out
