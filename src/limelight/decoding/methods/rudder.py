"""RUDDER: while answering, one late layer is pushed along the direction in which its attention moved the prompt.

Source: Zou et al., "Adaptive Residual-Update Steering for Low-Overhead Hallucination Mitigation in Large Vision Language
Models", ICML 2026 (arXiv 2511.10292), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.contrastive import check_choice, check_range
from limelight.decoding.instruments import (
    check_layers,
    decoder_layers,
    in_proportion,
    post_hook,
    pre_hook,
    refuse_cross_attention,
    tensor_of,
)  # fmt: skip
from limelight.decoding.intervention import InterventionSession, wide
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import SettingError

PUBLISHED = 30  # of 32 layers, from 0


@dataclass(frozen=True)
class Rudder(Method):
    """``h + alpha g v`` after one layer's attention: v its pooled update in the prompt's forward, g a gate on ``cos(h, v)``.

    ``v`` is the mean of the attention's outputs ``A_i`` over the prompt, weighted with their norms, of norm 1.
    ``g = softplus(k s + c) / (softplus(k s + c) + softplus(c - k s))`` with ``s = cos(h, v)``, clamped to
    ``[floor, 1]``; ``h`` is the residual stream that enters the layer.

    Args:
        alpha: length of the push at g = 1, in units of the residual stream, which depend on the model; 0 is the unchanged
            model.
        k, c: sensitivity and concentration of the gate.
        floor: the smallest g.
        layer: from 0; None: 30 of LLaVA-7B's 32, in proportion for other depths.
        pool: weights of the mean: ``norm`` or ``mean`` (equal weights).
        positions: over the whole ``prompt``, as published, or its ``media`` alone.
        gate: ``beta``, as above, or ``constant``: g = 1 (the paper's RUDDER-Add).
        variant: ``paper``, or ``released``: in the released code the pooled update is the attention's output minus its
            (normalised) input, and s is the cosine of v with the attention's output.
        first_token: ``steered``: the prompt's last position is pushed, too, so that the first token changes; ``plain``: the
            push begins with the second token, so that a one-word answer does not change.

    Differs from the paper: nothing known in ``variant="paper"``; that the first token is steered is our reading ("the
    hidden state for generating token t"; its yes/no results change).
    Differs from the released code (LLaVA-1.5, Idefics2, InstructBLIP, Qwen2.5-VL): one forward of the prompt (there an
    extra one finds v); there an answer mask is built from text tokens, so that with processors that do not expand the
    image every prompt position is pushed, and with newer ones none, that is, not the first token; here ``first_token``
    says which. There the gate is clamped to a range that differs by script (0.05 to 0.95, 0.1 to 1, 0 to 0.8). In
    decoders that normalise the attention's output before adding it (Gemma 2 and 3), the update is taken, and the push
    made, before that norm.
    """

    name = "rudder"
    capabilities = Capabilities(batches=True, beams=True)

    alpha: float = 20.0
    k: float = 5.0
    c: float = 1.0
    floor: float = 0.05
    layer: int | None = None
    pool: str = "norm"
    positions: str = "prompt"
    gate: str = "beta"
    variant: str = "paper"
    first_token: str = "steered"

    def __post_init__(self) -> None:
        check_range("rudder", "alpha", self.alpha, 0.0, hint="the paper: 20 for LLaVA-1.5")
        check_range("rudder", "k", self.k, 0.0, hint="the paper: 5")
        check_range("rudder", "c", self.c, 0.0, hint="the paper: 1")
        check_range("rudder", "floor", self.floor, 0.0, 1.0, hint="the paper: 0.05")
        check_choice("rudder", "pool", self.pool, ("norm", "mean"))
        check_choice("rudder", "positions", self.positions, ("prompt", "media"))
        check_choice("rudder", "gate", self.gate, ("beta", "constant"))
        check_choice("rudder", "variant", self.variant, ("paper", "released"))
        check_choice("rudder", "first_token", self.first_token, ("steered", "plain"))
        if self.layer is not None and (not isinstance(self.layer, int) or self.layer < 0):
            raise SettingError(f"rudder: expected a layer from 0 on, got {self.layer!r}", hint="the paper: 30 of 32")

    def at(self, depth: int) -> int:
        """Return the index of the layer in a model of ``depth`` layers."""
        return in_proportion((PUBLISHED, PUBLISHED), depth)[0] if self.layer is None else self.layer

    def session(self, context: GenerationContext) -> RudderSession:
        """Raises SettingError on a layer that the model does not have, UnsupportedError on a cross-attention model."""
        return RudderSession(self, context)


class RudderSession(InterventionSession):
    def __init__(self, strategy: Rudder, context: GenerationContext) -> None:
        adapter = context.adapter
        refuse_cross_attention(adapter, "rudder", "the attention's updates at the prompt's positions")
        super().__init__(context, "rudder", recompute=True)
        self.strategy = strategy
        layer = strategy.at(len(decoder_layers(adapter)))
        check_layers(adapter, [layer], "rudder", setting=f"layer={strategy.layer}")
        own = sorted(adapter.attention_layers)
        if layer not in own:
            raise SettingError(
                f"rudder: layer {layer} has no attention (attention in layers {own})", hint="set layer to one of those"
            )
        self.module, self.block = adapter.attention_layers[layer], decoder_layers(adapter)[layer]
        self.places = media_mask(context) if strategy.positions == "media" else context.mask
        self.vector: Tensor | None = None
        self.entering: Tensor | None = None
        self.given: Tensor | None = None

    def acts(self) -> bool:
        return self.strategy.alpha > 0 and (self.count > 0 or self.strategy.first_token == "steered")

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        return nullcontext() if self.strategy.alpha == 0 else self._steering()

    @contextmanager
    def _steering(self) -> Iterator[None]:
        def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.entering = tensor_of(args[0] if args else kwargs["hidden_states"])

        def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.given = args[0] if args else kwargs["hidden_states"]

        with pre_hook(self.block, enter), pre_hook(self.module, given), post_hook(self.module, self._push):
            yield
        self.entering = self.given = None

    def _push(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        out = tensor_of(output)
        s, released = self.strategy, self.strategy.variant == "released"
        if self.vector is None:
            update = wide(out) - wide(self.given) if released and self.given is not None else wide(out)
            self.vector = pooled(update, self.places, weighted=s.pool == "norm")
        if not self.acts() or self.entering is None:
            return None
        state = wide(out if released else self.entering)[:, -1]
        strength = gated(state, self.vector, s.k, s.c, s.floor) if s.gate == "beta" else torch.ones_like(state[:, :1])
        pushed = out.clone()
        pushed[:, -1] = (wide(out[:, -1]) + s.alpha * strength * self.vector).to(out.dtype)
        return (pushed, *output[1:]) if isinstance(output, tuple) else pushed


def pooled(update: Tensor, places: Tensor, *, weighted: bool) -> Tensor:
    """Return the direction ``[B, D]`` of the mean of ``update`` [B, T, D] over ``places`` [B, T]."""
    weight = (update.norm(dim=-1) if weighted else torch.ones_like(update[..., 0])) * places
    total = (update * weight[..., None]).sum(1) / weight.sum(-1, keepdim=True).clamp_min(1e-12)
    return normalize(total, dim=-1)


def gated(state: Tensor, vector: Tensor, k: float, c: float, floor: float) -> Tensor:
    """Return the gate ``[B, 1]`` of states ``[B, D]``: the mean of a Beta distribution with counts from the cosine."""
    s = cosine_similarity(state, vector, dim=-1)[:, None]
    with_it, against = softplus(k * s + c), softplus(c - k * s)
    return (with_it / (with_it + against)).clamp_min(floor)


rudder = Rudder
STRATEGIES = {"rudder": Rudder}
