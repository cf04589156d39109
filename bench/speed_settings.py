"""The settings that bench/speed.py times: ours, the peers', and two reference loops that exist only here."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.methods.lime import Lime, rewarded
from limelight.decoding.methods.lime_cached import LimeCached, LimeCachedSession
from limelight.decoding.registry import strategy
from limelight.decoding.strategy import GenerationContext, StepOutput
from limelight.grounding.deltas import Deltas
from limelight.grounding.objectives import kl, paper_loss
from limelight.models.runtime.attention import repeat_heads
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import ATTN_LRP


class Uncached:
    """Greedy decoding that runs the whole model, towers included, on the whole sequence at every token."""

    name = "greedy, uncached"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, context: GenerationContext) -> Any:
        return _UncachedSession(context)


class _UncachedSession:
    def __init__(self, context: GenerationContext) -> None:
        self.context, self.ids = context, context.ids

    def inputs(self) -> dict[str, Any]:
        dropped = (
            "past_key_values",
            "use_cache",
            "position_ids",
            "attention_mask",
            "modality_ids",
            "mm_encoder_outputs",
        )
        kept = {k: v for k, v in self.context.inputs.items() if k not in dropped}
        return {**kept, "pixel_values": self.context.tensors["pixel_values"], "input_ids": self.ids}

    def next(self, tokens: Tensor | None) -> StepOutput:
        if tokens is not None:
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        return StepOutput(self.context.adapter.model(**self.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1])


class _Added(Deltas):
    """Offsets as published: added to the repeated keys and values, whose attention weights are kept for every pass."""

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = q.shape[1] // k.shape[1]
        return q, repeat_heads(k, groups) + self.keys[layer], repeat_heads(v, groups) + self.values[layer]

    def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
        return scores

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        return out


class Naive:
    """The paper's loop as published: a second copy of the LM for the reference distribution, the towers and the full
    logits at every forward, eager attention with its weights kept, gradients recorded for weights too (nobody asks for
    them, but the parameters say they might), a backward after the last forward that nothing uses."""

    name = "LIME as published"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, context: GenerationContext) -> Any:
        return _NaiveSession(context)


class _NaiveSession(_UncachedSession):
    def __init__(self, context: GenerationContext) -> None:
        super().__init__(context)
        self.twin = deepcopy(context.adapter.model)
        self.modality = rewarded(context.modality_ids, context.mask, markers=False)
        self.mask = context.mask

    @torch.enable_grad()
    def next(self, tokens: Tensor | None) -> StepOutput:
        adapter = self.context.adapter
        if tokens is not None:
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
            self.modality = torch.cat([self.modality, self.modality.new_zeros(len(tokens), 1)], dim=1)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        traits = adapter.traits
        shape = (self.ids.shape[0], traits.heads, self.ids.shape[1], traits.head_dim)
        deltas = _Added(sorted(adapter.attention_layers), torch.float32)
        for layer in deltas.layers:
            Deltas.qkv(deltas, layer, *[torch.zeros(shape, device=self.ids.device)] * 3)
        adam = torch.optim.Adam(deltas.parameters(), lr=adapter.family.paper.lr)
        with torch.no_grad():
            reference = torch.log_softmax(self.twin(**self.inputs(), use_cache=False).logits[:, -1].float(), dim=-1)
        kept: list[Tensor] = []

        def leaf(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            embeds = kwargs["inputs_embeds"].detach().requires_grad_(True)
            kept.append(embeds)
            return args, {**kwargs, "inputs_embeds": embeds}

        handle = adapter.decoder.register_forward_pre_hook(leaf, with_kwargs=True)
        try:
            with attached(adapter, ATTN_LRP, deltas):
                for _ in range(adapter.family.paper.steps):
                    kept.clear()
                    logits = adapter.model(**self.inputs(), use_cache=False).logits[:, -1].float()
                    target = logits.argmax(-1)
                    f = logits.gather(-1, target[:, None]).sum()
                    relevance = input_relevance(f, kept[0], create_graph=True)
                    loss = paper_loss(relevance, self.modality, self.mask, 0.1) + 0.1 * kl(reference, logits)
                    deltas.set_gradients(torch.autograd.grad(loss.sum(), deltas.parameters()))
                    adam.step()
        finally:
            handle.remove()
        return StepOutput(logits.detach())


class _EveryFifth(LimeCachedSession):
    """A gate that opens at every fifth token: what 20 % of the tokens cost, whatever the model thinks."""

    def __init__(self, settings: LimeCached, context: GenerationContext) -> None:
        super().__init__(settings, context)
        session = self

        class Fifth:
            kind = "every fifth token"
            seen = 0

            def opens(self, logits: Tensor, phi: Tensor) -> Tensor:
                self.seen += 1
                return torch.full((logits.shape[0],), self.seen % 5 == 0, device=logits.device)

        session.gate = Fifth()  # type: ignore[assignment]


class Gated(LimeCached):
    def session(self, context: GenerationContext) -> Any:
        return _EveryFifth(self, context)


def settings() -> dict[str, Callable[[], Any]]:
    """name -> strategy, in the order of the table; greedy first."""
    return {
        "greedy": lambda: strategy("greedy"),
        "greedy, uncached": Uncached,
        "meter": lambda: strategy("meter"),
        "relevance-contrastive": lambda: strategy("relevance-contrastive"),
        "cached LIME, gated 20 %": Gated,
        "cached LIME, 1 update": lambda: LimeCached(updates=1),
        "cached LIME, 2 updates": lambda: LimeCached(updates=2),
        "cached LIME, 6 updates": lambda: LimeCached(updates=6),
        "cached LIME, 1 Adam update": lambda: LimeCached(updates=1, rule="adam"),
        "cached LIME, 6 Adam updates": lambda: LimeCached(updates=6, rule="adam"),
        **{label: partial(strategy, label.lower()) for label in PEERS},
        "exact LIME": Lime,
        "LIME as published": Naive,
    }


# OPERA searches the whole answer before its first token: seconds between tokens say nothing of it.
NEWER = ("VAF", "RUDDER", "VISTA", "ILVAD", "AGLA", "FLB", "IAT", "KVSmooth")
PEERS = ("VCD", "M3ID", "ICD", "PAI", "AvisC", "DoLa", "DeCo", "MemVR", *NEWER)
UNCACHED = ("exact LIME", "LIME as published")
BATCHED = (
    "greedy",
    "meter",
    "relevance-contrastive",
    "cached LIME, gated 20 %",
    "cached LIME, 1 update",
    "VCD",
    "M3ID",
)
