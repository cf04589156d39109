"""Runs of cached LIME held against whole sequences without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

import limelight
from limelight.decoding.methods import lime_cached as module
from limelight.decoding.methods.lime_cached import LimeCached, lime_cached
from limelight.grounding.cache_offsets import Gradient
from limelight.models.adapter import Adapter
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import COMPOSITES
from tests.slow_twins import cache_scope as twin
from tests.slow_twins.llama import weights_of

Inputs = dict[str, Tensor]


def run(adapter: Adapter, inputs: Inputs, tokens: int = 1, *, processors: Any = None, **settings: Any) -> Any:
    given = settings.pop("strategy", None) or lime_cached(**settings)
    more = {} if processors is None else {"logits_processor": LogitsProcessorList(processors)}
    return adapter.model.generate(
        **inputs, custom_generate=limelight.custom_generate(given, parent_model=adapter), max_new_tokens=tokens, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **more,
    )  # fmt: skip


class Record(list[dict[int, tuple[Tensor, Tensor]]]):
    """The gradients of every update, materialised: layer -> (dK, dV) ``[B, heads, T, d]``; and the prompt as captured.

    (generate() may count positions from elsewhere than a bare forward: offsets live in rotated coordinates.)
    """

    call: DecoderCall


@contextmanager
def recorded(group: int, per_kv: bool) -> Iterator[Record]:
    seen = Record()
    original, capture = module.gradients_of, module.captured

    def spy(*args: Any, **kwargs: Any) -> dict[int, Gradient]:
        found = original(*args, **kwargs)
        seen.append({n: (dense(g.scores, g.queries), dense(g.weights, g.out)) for n, g in found.items()})
        return found

    def captured(*args: Any) -> Any:
        seen.call, modality = capture(*args)
        return seen.call, modality

    def dense(left: Tensor, right: Tensor) -> Tensor:
        heads = 1 if per_kv else group
        out = left.new_zeros(*left.shape[:2], heads, left.shape[-1], right.shape[-1])
        for r in range(left.shape[2]):
            out[:, :, r % heads] += left[:, :, r, :, None] * right[:, :, r, None, :]
        return out.flatten(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "gradients_of", spy)
        patch.setattr(module, "captured", captured)
        yield seen


def paper_weights(
    adapter: Adapter,
    call: DecoderCall,
    where: Tensor,
    tau: float,
    composite: Any,
    choose: Callable[[Tensor], list[int]],
) -> Tensor:
    """d paper_loss / d R at zero offsets, by autograd through the loss as it is written."""
    with torch.enable_grad(), attached(adapter, composite):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0]
        relevance = input_relevance(logits[choose(logits.detach())[0]], embeds)[0].detach().requires_grad_(True)
    loss = -torch.log_softmax(relevance / tau, dim=-1)[where].mean()
    return torch.autograd.grad(loss, relevance)[0]


def weights_c(objective: str, reward: str, media_mask: Tensor, said: int, paper: Tensor | None) -> Tensor:
    """The twin's weights ``[C, T]``: what is rewarded first; words said so far are text (paper: they weigh nothing)."""
    m = nn.functional.pad(media_mask.double(), (0, said))
    t = 1 - m
    if reward == "text":
        m, t = t, m
    if objective == "difference":
        return torch.stack([m, m - t])
    if objective == "paper":
        assert paper is not None
        return torch.stack([m, nn.functional.pad(paper, (0, m.shape[0] - paper.shape[0]))])
    return torch.stack([m, t])


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Relative to the largest entry."""
    torch.testing.assert_close(got.to(want.dtype), want, atol=tolerance * float(want.abs().max()), rtol=0)


def check_against_twin(
    adapter: Adapter,
    inputs: Inputs,
    strategy: LimeCached,
    tokens: int,
    *,
    route: str,
    tolerance: float = 1e-9,
    processors: Any = None,
) -> Any:
    traits = adapter.traits
    with recorded(traits.heads // traits.kv_heads, strategy.heads == "kv") as gradients:
        output = run(adapter, inputs, tokens, strategy=strategy, processors=processors)
    call = gradients.call
    media_mask = (adapter.modality_ids(inputs) > 0)[0]
    composite = COMPOSITES[strategy.composite]
    where = media_mask if strategy.reward == "modality" else ~media_mask
    paper = None
    layers = tuple(sorted(adapter.attention_layers)) if strategy.layers is None else strategy.layers
    settings = twin.Rules(
        strategy.updates, strategy.lr, strategy.objective, strategy.rule, strategy.heads, strategy.kl_weight, layers
    )
    prompt_length = call.length
    for j in range(tokens):
        said = call.length - prompt_length
        ids = output.sequences[:, : inputs["input_ids"].shape[1] + j]

        def choose(logits: Tensor, ids: Tensor = ids) -> list[int]:
            scores = logits[None].clone()
            for processor in processors or ():
                scores = processor(ids, scores)
            return twin.two_best(scores[0])

        if strategy.objective == "paper" and (j == 0 or (strategy.refresh and j % strategy.refresh == 0)):
            grown = nn.functional.pad(where, (0, said), value=strategy.reward == "text")
            paper = paper_weights(adapter, call, grown, strategy.tau, composite, choose)
        c = weights_c(strategy.objective, strategy.reward, media_mask, said, paper)
        counts = (int(media_mask.sum()), call.length - int(media_mask.sum()))
        counts = counts if strategy.reward == "modality" else counts[::-1]

        def sequence(ids: list[int], c: Tensor, dk: Any, dv: Any, call: DecoderCall = call) -> tuple[Tensor, Tensor]:
            if route == "backward":
                return twin.phi(adapter, call, composite, ids, c, dk, dv)
            pairs = [twin.dual(weights_of(adapter.model), call.embeds[0], row, dk, dv) for row in c]
            return pairs[0][0], torch.stack([p[1][ids] for p in pairs])

        want = twin.optimise(
            sequence, c, counts, (traits.heads, traits.kv_heads, call.length, traits.head_dim), settings, choose
        )
        step = output.steps[0][j]
        close(output.logits[j][0].double(), want.logits, tolerance)
        assert step.plain == int(want.plain.argmax())
        assert step.losses["relevance"] == pytest.approx(want.losses, abs=tolerance * 10, rel=tolerance * 10)
        assert step.losses["kl"] == pytest.approx([0.0, *want.kls[1:]], abs=tolerance)
        totals = [a + strategy.kl_weight * b for a, b in zip(want.losses, [0.0, *want.kls[1:]], strict=True)]
        assert step.losses["total"] == pytest.approx(totals, abs=tolerance * 10, rel=tolerance * 10)
        mine = gradients[j * strategy.updates : (j + 1) * strategy.updates]
        for found, wanted in zip(mine, want.gradients, strict=True):
            assert sorted(found) == sorted(layers)
            for kind in (0, 1):
                whole = torch.cat([wanted[kind][n].flatten() for n in layers])
                close(torch.cat([found[n][kind][0].flatten() for n in layers]), whole, tolerance * 10)
        with torch.no_grad():
            call = call.appended(adapter.embed(output.sequences[:, ids.shape[1], None]))
    return output
