"""Exact LIME: the paper's computation (arXiv 2605.01766, algorithm 1) as its authors run it.

For every new token, without a cache: offsets on the keys and values of every layer and position start at zero, and
``steps - 1`` Adam updates shift relevance toward the media while a KL term keeps the distribution near the model's
own. The token is chosen from the last forward pass.

Optimisations over the released code, with unchanged results: the encoders run once; the reference distribution is the
first iteration's (no second model in memory); logits of the last position only; no backward after the last forward;
attention weights are recomputed instead of stored for the second-order pass.

Differs from the released code: its AttnLRP patches are applied to an unused copy of the modelling module for LLaVA and
Qwen2.5-VL (there it runs gradient x input), which ``composite=GRADIENT_INPUT`` reproduces; a repetition penalty is
applied once, as transformers does, not twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_choice
from limelight.decoding.generation_options import refuse
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, Method, StepOutput
from limelight.errors import NotFiniteError, SettingError
from limelight.grounding.deltas import Deltas
from limelight.grounding.lean import LeanDeltas
from limelight.grounding.objectives import PAPER, Objective, check_groups, kl, objective
from limelight.models.adapter import Adapter
from limelight.models.families import PaperSettings
from limelight.models.runtime.attention import check_bound
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance, relevance_of
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, Composite


@dataclass(frozen=True)
class Iteration:
    """The values of one forward of the optimisation, for comparison with recorded runs. Shapes exclude the batch axis."""

    logits: Tensor
    target: Tensor
    relevance: Tensor
    kl: Tensor
    relevance_loss: Tensor
    loss: Tensor
    gradients: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]


@dataclass(frozen=True)
class Optimised:
    """Result of :func:`optimise`: final logits ``[B, V]``, the unchanged model's, loss curves of ``[B]``, the offsets."""

    logits: Tensor
    plain: Tensor
    losses: dict[str, list[Tensor]]
    deltas: Deltas


def optimise(
    adapter: Adapter,
    call: DecoderCall,
    modality: Tensor,
    choose: Callable[[Tensor], Tensor],
    settings: PaperSettings,
    *,
    goal: Objective = PAPER,
    composite: Composite = ATTN_LRP,
    layers: Sequence[int] | None = None,
    direction: str = "gradient",
    generator: torch.Generator | None = None,
    trace: Callable[[Iteration], None] | None = None,
) -> Optimised:
    """Optimise the offsets for one token (LIME, algorithm 1; eqs. 4-7).

    Args:
        call: the whole sequence so far, ``[B, T, D]``.
        modality: positions whose relevance is rewarded, bool ``[B, T]``.
        choose: chooses the target tokens ``[B]`` of each forward from its logits ``[B, V]``.
        layers: layers that get offsets (None: all).
        direction: ``gradient``; or ``random``, the control: offsets of the size of an Adam step with random signs.
        trace: called with every iteration; the last one's backward is then run as well (the authors run and discard it).
    """
    where = sorted(adapter.attention_layers) if layers is None else list(layers)
    deltas = LeanDeltas(where, call.embeds.dtype, composite)
    adam: torch.optim.Adam | None = None
    losses: dict[str, list[Tensor]] = {"kl": [], "relevance": [], "total": []}
    plain = logits = torch.empty(0)
    reference = torch.empty(0)
    with adapter.frozen(), attached(adapter, composite, deltas):
        for step in range(settings.steps):
            last = step == settings.steps - 1
            blind = direction == "random" and trace is None
            with torch.set_grad_enabled(not ((last and trace is None) or blind)):
                embeds = call.embeds.clone().requires_grad_(torch.is_grad_enabled())
                if blind and 0 < step < settings.steps - 1:
                    continue
                logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[:, 0]
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                if step == 0:
                    if not deltas.keys:  # no attention was reached, so there is nothing to optimise
                        check_bound(set(), set(where))
                    plain = logits.detach()
                    reference = torch.log_softmax(plain, dim=-1)
                    if not bool(torch.isfinite(plain).all()):
                        raise NotFiniteError(
                            "the logits contain NaN or infinity", hint="check weights and dtype; try float32"
                        )
                if last and trace is None:
                    break
                if blind:
                    _random_offsets(deltas, settings.lr * (settings.steps - 1), generator)
                    continue
                target = choose(logits.detach())
                relevance = input_relevance(goal.target(logits, target).sum(), embeds, create_graph=True)
                relevance_loss = goal.loss(relevance, modality, call.mask, settings.tau)
                kl_loss = kl(reference, logits)
                loss = relevance_loss + settings.kl_weight * kl_loss
                gradients = torch.autograd.grad(
                    loss.sum(), deltas.parameters(), materialize_grads=True, allow_unused=True
                )
            for name, value in (("kl", kl_loss), ("relevance", relevance_loss), ("total", loss)):
                losses[name].append(value.detach())
            deltas.set_gradients(gradients)
            adam = adam or torch.optim.Adam(deltas.parameters(), lr=settings.lr)
            adam.step()
            if trace is not None:
                trace(
                    Iteration(
                        logits.detach(), target, relevance.detach(), kl_loss.detach(), relevance_loss.detach(), loss.detach(),
                        tuple(g.detach() for g in gradients), tuple(p.detach().clone() for p in deltas.parameters()),
                    )
                )  # fmt: skip
    return Optimised(logits.detach(), plain, losses, deltas)


def _random_offsets(deltas: Deltas, size: float, generator: torch.Generator | None) -> None:
    """Add ``size`` with a random sign to every entry, as a control. Adam's first steps are sign steps in consistent
    directions, so S - 1 of them have about the norm of one of (S - 1) * lr."""
    with torch.no_grad():
        for parameter in deltas.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator, device=parameter.device)
            parameter.add_((signs * 2 - 1).to(parameter.dtype), alpha=size)


@dataclass(frozen=True)
class Lime(Method):
    """Exact LIME. ``None`` uses the model family's row of the paper's table.

    Args:
        lr, kl_weight, tau, steps: Adam learning rate, lambda, softmax temperature, forwards per token (steps - 1 updates).
        objective: ``paper``, or ours: ``margin`` (influence on the decision), ``difference``, ``normalised``.
        composite: ``attnlrp``, ``cp-lrp`` or ``gradient-input`` (what the released code runs on LLaVA and Qwen2.5-VL).
        reward: ``modality``, or ``text`` (a control: the same loss on the text positions).
        direction: ``gradient``, or ``random`` (a control: random signs of equal norm, drawn with ``seed``).
        layers: layers that get offsets (None: all).
        markers: include the start and end markers around the media, as the authors' span does; None: the family's value.
    """

    name = "lime"

    lr: float | None = None
    kl_weight: float | None = None
    tau: float | None = None
    steps: int | None = None
    objective: str = "paper"
    composite: str = "attnlrp"
    reward: str = "modality"
    direction: str = "gradient"
    layers: tuple[int, ...] | None = None
    markers: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        objective(self.objective)
        check_choice(
            "lime", "composite", self.composite, tuple(c.name for c in COMPOSITES.values() if not c.positional)
        )
        check_choice("lime", "reward", self.reward, ("modality", "text"))
        check_choice("lime", "direction", self.direction, ("gradient", "random"))
        for name, number in (("lr", self.lr), ("tau", self.tau), ("steps", self.steps)):
            if number is not None and not 0 < number < float("inf"):
                raise SettingError(
                    f"{name} must be positive, got {number}", hint="the paper: lr 3e-4, tau 0.1, steps 7"
                )
        if self.steps is not None and self.steps != int(self.steps):
            raise SettingError(f"steps must be an integer, got {self.steps}", hint="the paper: 7")
        if self.layers is not None and not self.layers:
            raise SettingError("layers is empty: no layer would get offsets", hint="None means all layers")
        if self.kl_weight is not None and not 0 <= self.kl_weight < float("inf"):
            raise SettingError(f"kl_weight must not be negative, got {self.kl_weight}", hint="the paper: 0.1")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batches=True, gradients=self.direction == "gradient" and self.steps != 1)

    def resolved(self, adapter: Adapter) -> PaperSettings:
        """Return the settings with the family's values filled in for this model."""
        paper = adapter.family.paper
        return PaperSettings(
            lr=paper.lr if self.lr is None else self.lr,
            kl_weight=paper.kl_weight if self.kl_weight is None else self.kl_weight,
            tau=paper.tau if self.tau is None else self.tau,
            steps=paper.steps if self.steps is None else self.steps,
            markers=paper.markers if self.markers is None else self.markers,
        )

    def session(self, context: GenerationContext) -> LimeSession:
        return LimeSession(self, context)


def check_offset_layers(adapter: Adapter, layers: Sequence[int] | None) -> set[int]:
    """Return the layers whose keys and values get offsets (None: all). Raises SettingError on layers without attention."""
    unknown = sorted(set(layers or ()) - set(adapter.attention_layers))
    if unknown:
        raise SettingError(f"no attention in layers {unknown}", hint=f"layers: {sorted(adapter.attention_layers)}")
    return set(adapter.attention_layers if layers is None else layers)


def rewarded(ids: Tensor, mask: Tensor, *, markers: bool, reward: str = "modality") -> Tensor:
    """Return a mask ``[B, T]`` of positions to reward: the media (optionally with markers), or the text as a control."""
    modality = (ids > 0) & mask
    if markers:
        grown = modality.clone()
        grown[:, 1:] |= modality[:, :-1]
        grown[:, :-1] |= modality[:, 1:]
        modality = grown & mask
    return modality if reward == "modality" else mask & ~modality


class LimeSession:
    """The exact LIME session on one prompt batch."""

    def __init__(self, strategy: Lime, context: GenerationContext) -> None:
        refuse(context, "lime", "prefill_chunk_size", "cache_implementation")
        self.strategy, self.context = strategy, context
        self.settings = strategy.resolved(context.adapter)
        self.composite = COMPOSITES[strategy.composite]
        self.goal = objective(strategy.objective)
        self.ids = context.ids
        self.generator = torch.Generator(device=context.ids.device).manual_seed(strategy.seed)
        check_offset_layers(context.adapter, strategy.layers)
        with torch.inference_mode(False), torch.no_grad():
            self.call = context.adapter.capture(context.inputs).cloned()
            self.modality = rewarded(
                self.call.modality(context.modality_ids),
                self.call.mask,
                markers=self.settings.markers,
                reward=strategy.reward,
            )
        check_groups(self.modality, self.call.mask)

    def next(self, tokens: Tensor | None) -> StepOutput:
        adapter = self.context.adapter
        with torch.inference_mode(False):
            if tokens is not None:
                tokens = tokens.clone()
                self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
                with torch.no_grad():
                    self.call = self.call.appended(adapter.embed(tokens[:, None]))
                fill = self.modality.new_full((len(tokens), 1), self.strategy.reward == "text")
                self.modality = torch.cat([self.modality, fill], dim=1)
            preview = self.context.sampler.preview(self.ids)
            result = optimise(
                adapter, self.call, self.modality, lambda logits: preview(logits).argmax(dim=-1), self.settings,
                goal=self.goal, composite=self.composite, layers=self.strategy.layers,
                direction=self.strategy.direction, generator=self.generator,
            )  # fmt: skip
        return StepOutput(result.logits, explain=lambda row, token: self._detail(row, token, result))

    def _detail(self, row: int, chosen: int, result: Optimised) -> Detail:
        losses = {name: tuple(float(v[row]) for v in values) for name, values in result.losses.items() if values}
        plain = int(result.plain[row].argmax())
        if not self.context.details:
            return Detail(intervened=self.settings.steps > 1, plain=plain, losses=losses)
        with torch.inference_mode(False), attention_offsets(result.deltas, row):
            relevance = relevance_of(
                self.context.adapter, self.call.row(row), self.context.inputs, [(self.call.length - 1, chosen)], row=row,
                composite=self.composite, generated=self.ids[row, self.context.ids.shape[1] :],
                prompt_spans=self.context.spans[row] if self.context.spans else None,
            )[0]  # fmt: skip
        return Detail(relevance, relevance.shares(), self.settings.steps > 1, plain, losses)


def attention_offsets(deltas: Deltas, row: int) -> Any:
    """Apply one row's optimised offsets as hooks, so that relevance is under the distribution the token came from."""
    from limelight.models.runtime.attention import attention_hooks

    single = Deltas((), torch.float32)
    single.keys = {n: d.detach()[row : row + 1] for n, d in deltas.keys.items()}
    single.values = {n: d.detach()[row : row + 1] for n, d in deltas.values.items()}
    return attention_hooks(single)


def lime(**settings: Any) -> Lime:
    """Exact LIME; see :class:`Lime` for the settings."""
    return Lime(**settings)


STRATEGIES = {"lime": Lime}

__all__ = ["STRATEGIES", "Iteration", "Lime", "LimeSession", "Optimised", "lime", "optimise", "rewarded"]
