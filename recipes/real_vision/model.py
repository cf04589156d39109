"""The composed model for training: published weights, a new projector, and low-rank changes beside frozen weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.checkpoints.smol_vision import SmolVision
from recipes.demo_vision.text import Packed

RANK, ALPHA = 8, 16
CHANGED = ("q_proj", "v_proj")


class LowRank(nn.Module):
    """A frozen linear layer and a change ``B A`` of rank ``rank``, zero at first (LoRA, arXiv 2106.09685)."""

    def __init__(self, inner: nn.Linear, rank: int = RANK, alpha: float = ALPHA) -> None:
        super().__init__()
        self.inner = inner
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.randn(rank, inner.in_features) * inner.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        change = (x @ self.a.T.to(x.dtype)) @ self.b.T.to(x.dtype)
        return self.inner(x) + self.scale * change  # type: ignore[no-any-return]


def attach(model: SmolVision) -> dict[str, LowRank]:
    """Low-rank changes at the attention of every layer of the language model; by the name of the layer they stand at."""
    language = model.model.language_model
    out = {}
    for name, module in list(language.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in CHANGED:
            parent, _, child = name.rpartition(".")
            out[name] = LowRank(module)
            setattr(language.get_submodule(parent), child, out[name])
    return out


def changes(attached: dict[str, LowRank]) -> dict[str, Tensor]:
    """What :func:`limelight.models.checkpoints.smol_vision.merge` takes."""
    out = {}
    for name, layer in attached.items():
        out[f"{name}.A"] = layer.a.detach().clone()
        out[f"{name}.B"] = (layer.b * layer.scale).detach().clone()
    return out


def decode(model: SmolVision, packed: Packed, features: Tensor) -> Tensor:
    """The language model's last hidden states ``[n, t, D]``; features ``[n, positions, width]`` fill the image tokens."""
    inner = model.model
    embeds = inner.language_model.embed_tokens(packed.ids)
    image = inner.multi_modal_projector(features).to(embeds.dtype)
    holes = (packed.ids == model.config.image_token_id)[..., None].expand_as(embeds)
    out: Any = inner.language_model(
        inputs_embeds=embeds.masked_scatter(holes, image), attention_mask=packed.mask.to(embeds.dtype),
        position_ids=packed.positions, use_cache=False,
    )  # fmt: skip
    return out.last_hidden_state  # type: ignore[no-any-return]


def language_loss(model: SmolVision, packed: Packed, features: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens, weighted; logits are computed there alone."""
    counted = packed.weights > 0
    logits = model.lm_head(decode(model, packed, features)[counted]).float()
    losses = nn.functional.cross_entropy(logits, packed.labels[counted], reduction="none")
    weights = packed.weights[counted]
    return (losses * weights).sum() / weights.sum()
