"""Cached LIME at about the cost of decoding: offsets for the current query only, gradients from one-token dual graphs.

Two changes to the paper's loop (arXiv 2605.01766, algorithm 1). Cache scope: the prefix's hidden states stay frozen, as
in a KV cache, so a forward is one token against the cache. Forward-mode relevance: Phi is read from tangent rows, so an
update needs one ordinary reverse pass over one token instead of a double backward over the sequence.

Differs from the paper: the scope; the step (``rule="normalised"`` keeps low-rank factors and never materialises
``[H, T, d]``; ``"adam"`` is the paper's optimiser in this scope); the default objective rewards the media's influence
on the decision instead of their support for the token already chosen; one update instead of six.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_choice
from limelight.decoding.dual import captured, check_composite, explainer, open_stream, split_channels
from limelight.decoding.methods.lime import check_offset_layers, rewarded
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.errors import SettingError
from limelight.grounding.cache_offsets import DenseOffsets, LowRankOffsets, Tap, gradients_of
from limelight.grounding.gate import Gate
from limelight.grounding.objectives import check_groups, kl
from limelight.models.runtime.fused import fused_attention
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import COMPOSITES
from limelight.relevance.forward.stream import Channel, contrast_channel, modality_channel, text_channel

OBJECTIVES = ("margin", "difference", "normalised", "paper")
Offsets = LowRankOffsets | DenseOffsets


@dataclass(frozen=True)
class LimeCached(Method):
    """Cached LIME.

    Args:
        updates: optimisation steps per token.
        lr: root mean square of one update's entries.
        objective: ``margin``: maximise |Phi_M(top1 - top2)|; ``difference``: Phi_M - Phi_T of the top token;
            ``normalised``: its log-softmax over the two groups' means; ``paper``: the paper's loss at zero offsets,
            using weights from one full backward (``refresh``).
        gradient: ``true``, or ``surrogate`` (the authors' second-order pass through the rules).
        rule: ``normalised`` (low rank) or ``adam`` (materialised; its first step is a sign step).
        heads: offsets per ``query`` head or per ``kv`` head.
        kl_weight: weight of the KL divergence from the unchanged distribution (acts from the second update on).
        tau: temperature of the paper's weights.
        layers: layers that get offsets (None: all).
        refresh: recompute the paper's weights every this many tokens (0: once, at the prompt; tokens generated since
            have weight 0).
        gate, threshold: see :class:`Gate`.
        reward: ``modality``, or ``text`` (a control: the same objective on the text positions).

    The paper's objective includes the media's markers for the families where exact mode does; the others never do.
    """

    name = "lime-cached"

    updates: int = 1
    lr: float = 1e-3
    objective: str = "margin"
    gradient: str = "true"
    rule: str = "normalised"
    heads: str = "query"
    kl_weight: float = 0.1
    tau: float = 0.1
    composite: str = "attnlrp"
    layers: tuple[int, ...] | None = None
    refresh: int = 0
    gate: str = "always"
    threshold: float = 0.95
    reward: str = "modality"

    def __post_init__(self) -> None:
        check_composite(self.composite)
        Gate(self.gate, self.threshold)
        check_choice("lime-cached", "objective", self.objective, OBJECTIVES)
        check_choice("lime-cached", "gradient", self.gradient, ("true", "surrogate"))
        check_choice("lime-cached", "rule", self.rule, ("normalised", "adam"))
        check_choice("lime-cached", "heads", self.heads, ("query", "kv"))
        check_choice("lime-cached", "reward", self.reward, ("modality", "text"))
        if not all(isinstance(count, int) for count in (self.updates, self.refresh)):
            raise SettingError(
                f"updates and refresh must be integers, got {self.updates!r} and {self.refresh!r}",
                hint="one update is the default",
            )
        positive = all(0 < x < math.inf for x in (self.lr, self.tau))
        if self.updates < 1 or not positive or not 0 <= self.kl_weight < math.inf or self.refresh < 0:
            raise SettingError(
                f"updates {self.updates}, lr {self.lr}, tau {self.tau}, kl_weight {self.kl_weight}, refresh {self.refresh}",
                hint="updates >= 1, lr > 0, tau > 0, kl_weight >= 0, refresh >= 0; relevance-contrastive needs no update",
            )
        if self.refresh and self.objective != "paper":
            raise SettingError(
                f"refresh is {self.refresh}, but objective {self.objective!r} has no weights to refresh",
                hint="use refresh with objective='paper' only",
            )
        listed = isinstance(self.layers, (tuple, list)) and all(isinstance(n, int) for n in self.layers)
        if self.layers is not None and not (listed and self.layers):
            raise SettingError(
                f"expected layers as one or more indices, such as (0, 1), got {self.layers!r}",
                hint="layers=None means all layers; use greedy for no offsets",
            )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batches=True, gradients=True, meter=self.composite)

    def session(self, context: GenerationContext) -> LimeCachedSession:
        return LimeCachedSession(self, context)


class LimeCachedSession:
    def __init__(self, strategy: LimeCached, context: GenerationContext) -> None:
        self.strategy, self.context = strategy, context
        self.gate = Gate(strategy.gate, strategy.threshold)
        self.ids = context.ids
        self.count = 0
        self.layers = check_offset_layers(context.adapter, strategy.layers)
        self.call, self.media_mask = captured(context)
        markers = strategy.objective == "paper" and context.adapter.family.paper.markers
        kinds = self.call.modality(context.modality_ids.clone())
        self.modality = rewarded(kinds, self.call.mask, markers=markers, reward=strategy.reward)
        check_groups(self.modality, self.call.mask)
        self.dual = open_stream(context, self.call, self._channels(), strategy.composite)

    def _channels(self) -> list[Channel]:
        """Return the channels: first Phi_M, which gate and meter read, then the objective's, then one per modality."""
        mask = self.call.mask
        meter = modality_channel(self.media_mask, mask)
        objective = self.strategy.objective
        text = self.strategy.reward == "text"
        self.split = split_channels(self.context, mask, self.call.front)
        if objective == "difference":
            contrast = contrast_channel(self.modality, mask)
            own = [replace(contrast, generated=1.0) if text else contrast]  # generated tokens are text
        elif objective == "paper":
            own = [self._paper_channel()]
        else:
            own = [text_channel(self.media_mask, mask)] if objective == "normalised" or text else []
        return [meter, *own, *self.split]

    def _paper_channel(self) -> Channel:
        """Return ``w_i = (softmax(R / tau)_i - 1[i in M] / |M|) / tau``: <w, R> has the paper's gradient at zero offsets."""
        adapter, call, modality = self.context.adapter, self.call, self.modality
        preview = self.context.sampler.preview(self.ids)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            adapter.frozen(),
            attached(adapter, COMPOSITES[self.strategy.composite]),
            fused_attention(),
        ):
            embeds = call.embeds.clone().requires_grad_(True)
            logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[:, 0]
            target = preview(logits.detach()).argmax(-1, keepdim=True)
            relevance = input_relevance(logits.gather(-1, target).sum(), embeds).detach()
        tau = self.strategy.tau
        weights = torch.softmax((relevance / tau).masked_fill(~call.mask, float("-inf")), dim=-1)
        weights = (weights - modality.to(weights.dtype) / modality.sum(-1, keepdim=True)) / tau
        return Channel("paper", weights, 0.0)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with torch.inference_mode(False), torch.no_grad():
            fresh = tokens is None
            if tokens is not None:
                tokens = tokens.clone()
                self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
                fresh = self._refreshed(tokens)
            if fresh:
                output = self.dual.prefill()
                self.dual.rewind()
                logits, phi = self.dual.heads(output)
            elif tokens is not None:
                self.dual.append(tokens)
                if self.gate.kind == "always":
                    return self._optimised(None, None, torch.ones_like(tokens, dtype=torch.bool), write=True)
                logits, phi = self.dual.heads(self.dual.current(write=True))
                self.dual.rewind()
            opened = self.gate.opens(logits, phi[0])
            if bool(opened.any()):
                step_output = self._optimised(logits, phi, opened, write=False)
            else:
                step_output = self._step_output(logits, logits, phi, opened, {})
            self.dual.cache.advance(1)
            return step_output

    def _refreshed(self, tokens: Tensor) -> bool:
        """Open a new stream on prompt and answer so far, with new weights, if due; return whether it was opened."""
        if not self.strategy.refresh:
            return False
        self.count += 1
        self.call = self.call.appended(self.context.adapter.embed(tokens[:, None]))
        generated = self.media_mask.new_zeros(len(tokens), 1)
        self.media_mask = torch.cat([self.media_mask, generated], dim=1)
        self.modality = torch.cat([self.modality, generated | (self.strategy.reward == "text")], dim=1)
        if self.count % self.strategy.refresh:
            return False
        self.dual = open_stream(self.context, self.call, self._channels(), self.strategy.composite)
        return True

    def _step_output(
        self, out: Tensor, logits: Tensor, phi: Tensor, opened: Tensor, losses: dict[str, list[Tensor]]
    ) -> StepOutput:
        """Build the step output of ``out`` [B, V], explained by the unchanged model's logits and Phi [C, B, V]."""
        first = phi.shape[0] - len(self.split)
        split = {c.name: p for c, p in zip(self.split, phi[first:], strict=True)}
        return StepOutput(
            out,
            explain=explainer(
                self.context,
                logits,
                phi[0],
                split=split,
                opened=opened,
                losses=losses,
                composite=self.strategy.composite,
            ),
        )

    def _optimised(self, logits: Tensor | None, phi: Tensor | None, opened: Tensor, *, write: bool) -> StepOutput:
        """Run ``updates`` steps on the current position; ``write`` if its keys and values are not in the cache yet."""
        s = self.strategy
        self.preview = self.context.sampler.preview(self.ids)
        traits = self.context.adapter.traits
        group = {layer: traits.group(layer) for layer in self.layers}
        per_kv = s.heads == "kv"
        offsets: Offsets = (
            LowRankOffsets(s.lr, group, self._positions(), per_kv)
            if s.rule == "normalised"
            else DenseOffsets(s.lr, group, per_kv)
        )
        losses: dict[str, list[Tensor]] = {"kl": [], "relevance": [], "total": []}
        for step in range(s.updates):
            taps: list[Tap] = []
            output = self.dual.current(
                graph=s.gradient,
                write=write and step == 0,
                offsets=offsets if step else None,
                tap=lambda *seen, into=taps: into.append(Tap(*seen)) if seen[0] in self.layers else None,
            )
            if write and step == 0:
                self.dual.rewind()
            with torch.enable_grad():
                loss, kl_loss, logits, phi = self._loss(output, logits, phi, step)
                total = loss + s.kl_weight * kl_loss
                gradients = gradients_of(total.sum(), taps)
            for name, value in (("kl", kl_loss), ("relevance", loss), ("total", total)):
                losses[name].append(value.detach())
            offsets.update(gradients)
        final = self.dual.current(write=False, offsets=offsets, tangents=False)
        if write:
            self.dual.cache.advance(1)
        changed = self.dual.heads(final)[0]
        if logits is None or phi is None:
            raise SettingError("no forward was run", hint="updates >= 1")
        out = torch.where(opened[:, None], changed, logits)
        return self._step_output(out, logits, phi, opened, losses)

    def _positions(self) -> dict[int, Tensor]:
        """Return the number of real positions ``[B]`` with offsets, per layer: the prompt's or the cross-attention states'."""
        front, reading = self.call.front, self.dual.cache.reading
        words, states = self.dual.mask[:, front:].sum(-1), self.dual.mask[:, :front].sum(-1)
        return {layer: states if layer in reading else words for layer in self.layers}

    def _loss(
        self, output: Any, logits: Tensor | None, phi: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the objective's loss ``[B]``, the KL, and the unchanged model's logits and Phi."""
        s, dual = self.strategy, self.dual
        now: Tensor | None = None
        if logits is None or phi is None or step > 0:
            now, everything = dual.heads(output)
            if logits is None or phi is None:
                logits, phi = now.detach(), everything.detach()
        current = logits if now is None else now.detach()
        best = self._two_best(current)
        parts = dual.phi_of(output, best)  # [C, B, 2]
        loss = self._objective(parts)
        kl_loss = torch.zeros_like(loss)
        if step > 0 and s.kl_weight and now is not None:
            kl_loss = kl(torch.log_softmax(logits, dim=-1), now)
        return loss, kl_loss, logits, phi

    def _two_best(self, logits: Tensor) -> Tensor:
        """Return the top candidate and its rival ``[B, 2]``; the model's own runner-up if processors leave only one."""
        scores = self.preview(logits)
        first = scores.argmax(-1, keepdim=True)
        rest, own = (x.scatter(-1, first, float("-inf")) for x in (scores, logits))
        rest = torch.where(rest.amax(-1, keepdim=True).isneginf(), own, rest)
        return torch.cat([first, rest.argmax(-1, keepdim=True)], dim=-1)

    def _objective(self, parts: Tensor) -> Tensor:
        s = self.strategy
        rewarded = parts[1] if s.reward == "text" and s.objective == "margin" else parts[0]
        if s.objective == "margin":
            return -(rewarded[:, 0] - rewarded[:, 1]).abs()
        if s.objective == "difference":
            return -parts[1, :, 0]
        if s.objective == "paper":
            return parts[1, :, 0]
        mask = self.dual.mask
        count = self.media_mask.sum(-1)
        text = (mask.sum(-1) - count).clamp_min(1)
        mean_m, mean_t = parts[0, :, 0] / count, parts[1, :, 0] / text
        if s.reward == "text":
            mean_m, mean_t = mean_t, mean_m
        scale = (mean_m.detach().abs() + mean_t.detach().abs()).clamp_min(1e-12)
        return -torch.nn.functional.logsigmoid((mean_m - mean_t) / scale)


def lime_cached(**settings: Any) -> LimeCached:
    """Cached LIME; see :class:`LimeCached` for the settings."""
    return LimeCached(**settings)


STRATEGIES = {"lime-cached": LimeCached}
