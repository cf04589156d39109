"""Where the relevance of a logit goes: the balance sheet of one backward pass, written from the rules' definitions.

With every rule linear, f = sum_i R_i + what leaves on the way. What leaves, and nothing else does:

    bias       <b, df/db> of every bias a path crosses (a linear's, a LayerNorm's, the head's), learned positions included
    attention  (1 - 1/c) <O, df/dO> - (1/a + 1/b) <s, df/ds> for gradients divided by a, b, c through q, k, v: nothing
               for CP-LRP (no a and b, c = 1); for AttnLRP 1/2 (<O, df/dO> - <s, df/ds>), what the softmax takes;
               with attention left alone the scores count twice
    eps        <df/da, act(z) - z * act(z) / (z + 1e-10)>: the stabiliser's part
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limelight.models.adapter import Adapter
from limelight.models.inputs.per_layer import PerLayerInputs
from limelight.models.inputs.position_mask import is_positions
from limelight.models.runtime.attention import AttentionHook
from limelight.relevance.attachment import attached
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import Composite


class _Scores(AttentionHook):
    """Keeps the raw scores and the output of every layer in the graph."""

    def __init__(self) -> None:
        self.raw: list[Tensor] = []
        self.mixed: list[Tensor] = []

    def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
        self.raw.append(scores)
        return scores

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        self.mixed.append(out)
        return out


def sheet(adapter: Adapter, inputs: Any, composite: Composite, target: int | None = None) -> dict[str, float]:
    """``logit``, ``relevance`` (sum of R), and what leaves: ``bias``, ``attention``, ``eps``."""
    call = adapter.capture(inputs)
    biased: list[tuple[Tensor, Tensor]] = []
    bent: list[tuple[Tensor, Tensor]] = []
    scores = _Scores()

    def keep_bias(module: Any, _: Any, output: Tensor) -> None:
        biased.append((output, module.bias))

    def keep_positions(_: Any, __: Any, output: Tensor) -> None:
        biased.append((output, output))

    def keep_table(_: Any, __: Any, output: Tensor) -> Tensor:  # made without a graph
        leaf = output.clone().requires_grad_(True)
        biased.append((leaf, leaf))
        return leaf + 0

    def keep_activation(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        z = args[0].detach()
        rest = output.detach() - z * (output.detach() / (z + 1e-10))
        bent.append((output, rest))

    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(attached(adapter, composite, scores))
        scaling = {
            id(s.module) for s in classify_modules(adapter.decoder) if s.kind == "query_scale"
        }  # their bias multiplies
        for module in [*adapter.decoder.modules(), adapter.head]:
            if id(module) not in scaling and isinstance(getattr(module, "bias", None), nn.Parameter):
                stack.callback(module.register_forward_hook(keep_bias).remove)
            if isinstance(module, nn.Embedding):
                stack.callback(module.register_forward_hook(keep_positions).remove)
            elif is_positions(module):
                stack.callback(module.register_forward_hook(keep_table).remove)
        for site in classify_modules(adapter.decoder):
            if site.kind == "activation":
                stack.callback(site.module.register_forward_hook(keep_activation).remove)
        if isinstance(call.features, PerLayerInputs):  # what enters beside media is a constant
            constant = call.kwargs[call.features.name].clone().requires_grad_(True)
            call = replace(call, kwargs={**call.kwargs, call.features.name: constant})
            biased.append((constant, constant))
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1])[0]
        target = int(logits.argmax()) if target is None else target
        nodes = [embeds, *(x for x, _ in biased), *(x for x, _ in bent), *scores.raw, *scores.mixed]
        found = torch.autograd.grad(logits[target], [n for n in nodes if n.requires_grad], allow_unused=True)
    got = iter(found)
    zero = torch.zeros((), dtype=embeds.dtype)
    gradients = [next(got) if n.requires_grad else None for n in nodes]
    pairs = [(n.detach(), zero if g is None else g) for n, g in zip(nodes, gradients, strict=True)]
    first, second, third = 1 + len(biased), 1 + len(biased) + len(bent), 1 + len(biased) + len(bent) + len(scores.raw)
    mixed, raw = (sum(float((x * g).sum()) for x, g in part) for part in (pairs[third:], pairs[second:third]))
    q, k, v = (1 / n if n else 0.0 for n in composite.attention)
    attention = (1 - v) * mixed - (q + k) * raw
    return {
        "logit": float(logits[target].detach()),
        "relevance": float((pairs[0][0] * pairs[0][1]).sum()),
        "bias": sum(float((g * b.detach()).sum()) for (_, g), (_, b) in zip(pairs[1:first], biased, strict=True)),
        "attention": attention,
        "eps": sum(float((g * r).sum()) for (_, g), (_, r) in zip(pairs[first:second], bent, strict=True)),
    }
