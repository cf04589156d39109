"""Cached LIME against whole sequences without a cache: values, gradients, trajectories, weights, candidates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from limelight.decoding.methods.lime import rewarded
from limelight.decoding.methods.lime_cached import LimeCached
from limelight.grounding.objectives import paper_loss
from limelight.models.adapter import Adapter
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import ATTN_LRP
from tests.decoding.cached import check_against_twin, close, recorded, run, weights_c
from tests.slow_twins import cache_scope as twin
from tests.tiny import llava, llava_inputs
from tests.wide import wide
from tests.zoo import FOUNDATION, ZOO


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


OBJECTIVES = ("margin", "difference", "normalised", "paper")
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)
both_rules = pytest.mark.parametrize("rule", ["adam", "normalised"])
both_heads = pytest.mark.parametrize("heads", ["query", "kv"])


@every_objective
@both_rules
@both_heads
def test_true_gradient_trajectories(adapter: Adapter, objective: str, rule: str, heads: str) -> None:
    """Against value and tangent written out by hand, nothing held constant; two tokens of three updates."""
    strategy = LimeCached(
        updates=3, lr=5e-3, objective=objective, gradient="true", rule=rule, heads=heads, kl_weight=0.5
    )
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 2, route="dual")


@every_objective
@both_rules
@both_heads
def test_surrogate_trajectories(adapter: Adapter, objective: str, rule: str, heads: str) -> None:
    """Against the backward through the backward, under the rules: the authors' second-order pass."""
    strategy = LimeCached(
        updates=3, lr=5e-3, objective=objective, gradient="surrogate", rule=rule, heads=heads, kl_weight=0.5
    )
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 2, route="backward")


@both_rules
@pytest.mark.parametrize("gradient", ["true", "surrogate"])
def test_six_updates(adapter: Adapter, rule: str, gradient: str) -> None:
    strategy = LimeCached(updates=6, lr=3e-3, objective="difference", gradient=gradient, rule=rule, kl_weight=0.1)
    route = "dual" if gradient == "true" else "backward"
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 2, route=route, tolerance=1e-8)


@every_objective
@both_rules
def test_a_small_step_lowers_the_loss(adapter: Adapter, objective: str, rule: str) -> None:
    output = run(adapter, llava_inputs(adapter.model), 3, objective=objective, rule=rule, updates=3, lr=2e-4)
    for step in output.steps[0]:
        first, second, third = step.losses["total"]
        assert first > second > third


@pytest.mark.parametrize("objective", ["margin", "difference", "normalised", "paper"])
@pytest.mark.parametrize("gradient", ["true", "surrogate"])
def test_the_text_as_reward(adapter: Adapter, objective: str, gradient: str) -> None:
    """The control: the same objectives on the words, those said so far among them."""
    strategy = LimeCached(updates=2, lr=5e-3, objective=objective, gradient=gradient, reward="text")
    route = "dual" if gradient == "true" else "backward"
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 3, route=route)


@pytest.mark.parametrize("composite", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize(
    "name",
    [
        "qwen2_5_vl",
        "gemma3",
        "paligemma2",
        "mistral3",
        "llava_onevision",
        "glm4v",
        "pixtral",
        "granite_speech",
        "exaone4_5",
        "qwen3_vl",
        "granite4_vision",
        "aria",
        "llama4",
    ],
)
def test_surrogates_of_other_families(name: str, composite: str) -> None:
    """Biases and M-RoPE, q and k norms and sliding windows, soft-caps, fused gates, multipliers, deepstack, experts."""
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    strategy = LimeCached(
        updates=2, lr=5e-3, objective="margin", gradient="surrogate", composite=composite, kl_weight=0.5
    )
    check_against_twin(wider, inputs, strategy, 2, route="backward")


@pytest.mark.parametrize("name", [*FOUNDATION, "aria"])
def test_finite_differences(name: str) -> None:
    """The true gradient at the second update (offsets not zero, KL at work) against differences of the value itself."""
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    traits = wider.traits
    group = traits.heads // traits.kv_heads
    strategy = LimeCached(updates=2, lr=1e-2, objective="difference", kl_weight=0.7, gradient="true")
    with recorded(group, False) as gradients:
        output = run(wider, inputs, 1, strategy=strategy)
    call = gradients.call
    media_mask = (wider.modality_ids(inputs) > 0)[0]
    c = weights_c("difference", "modality", media_mask, 0, None)
    first, second = ({(kind, n): pair[kind][0] for n, pair in g.items() for kind in (0, 1)} for g in gradients)
    size = sum(float(g.pow(2).sum()) for g in first.values()) ** 0.5
    entries = sum(g.numel() for g in first.values())
    offsets = {key: -1e-2 * entries**0.5 / size * g for key, g in first.items()}
    plain = torch.log_softmax(twin.phi(wider, call, ATTN_LRP, [], c, {}, {})[0].detach(), -1)

    def total(at: dict[tuple[int, int], Tensor], tokens: list[int] | None) -> tuple[float, list[int]]:
        dk, dv = ({n: at[kind, n] for n in wider.attention_layers} for kind in (0, 1))
        logits, parts = twin.phi(wider, call, ATTN_LRP, tokens or [0, 1], c, dk, dv)
        logp = torch.log_softmax(logits, -1)
        kl = (plain.exp() * (plain - logp)).sum()
        return float((-parts[1, 0] + 0.7 * kl).detach()), twin.two_best(logits.detach())

    tokens = total(offsets, None)[1]
    assert total(offsets, tokens)[0] == pytest.approx(output.steps[0][0].losses["total"][1], abs=1e-8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        way = {key: torch.randn(o.shape, generator=generator, dtype=o.dtype) for key, o in offsets.items()}
        step = 1e-5
        ends = [total({k: o + s * step * way[k] for k, o in offsets.items()}, tokens)[0] for s in (1, -1)]
        slope = sum(float((second[k] * way[k]).sum()) for k in way)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_layers_of_ones_choice(adapter: Adapter) -> None:
    strategy = LimeCached(updates=2, lr=5e-3, objective="margin", layers=(1,))
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 2, route="dual")


@pytest.mark.parametrize("reward", ["modality", "text"])
@pytest.mark.parametrize("refresh", [1, 2])
def test_refreshed_weights_include_the_generated_tokens(adapter: Adapter, refresh: int, reward: str) -> None:
    strategy = LimeCached(updates=2, lr=5e-3, objective="paper", refresh=refresh, tau=0.3, reward=reward)
    check_against_twin(adapter, llava_inputs(adapter.model), strategy, 4, route="dual")


def test_a_refresh_is_a_session_of_its_own(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    output = run(adapter, inputs, 3, objective="paper", refresh=1, lr=5e-3)
    for j in (1, 2):
        ids = output.sequences[:, : inputs["input_ids"].shape[1] + j]
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        alone = run(adapter, longer, 1, objective="paper", lr=5e-3)
        close(alone.logits[0], output.logits[j], 1e-10)


@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_5_vl", "qwen2_audio"])
def test_paper_weights_have_the_gradient_of_the_exact_loss(name: str) -> None:
    """At zero offsets, by double backward through eq. 6 as it is written; the family's markers are in the span."""
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    paper, traits = wider.family.paper, wider.traits
    assert paper.markers == (name != "llava_gqa")
    with recorded(traits.heads // traits.kv_heads, False) as mine:
        run(wider, inputs, 1, objective="paper", gradient="surrogate", tau=paper.tau)
    call = mine.call
    where = rewarded(wider.modality_ids(inputs), call.mask, markers=paper.markers)
    shape = (traits.heads, call.length, traits.head_dim)
    layers = sorted(wider.attention_layers)
    dk, dv = ({n: torch.zeros(shape, dtype=torch.float64, requires_grad=True) for n in layers} for _ in "kv")
    with torch.enable_grad(), attached(wider, ATTN_LRP, twin.LastQuery(dk, dv)):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = wider.logits(wider.hidden(call, embeds)[:, -1:])[0, 0]
        relevance = input_relevance(logits[int(logits.argmax())], embeds, create_graph=True)
        loss = paper_loss(relevance, where, call.mask, paper.tau).sum()
    want = torch.autograd.grad(loss, [*dk.values(), *dv.values()])
    got = [mine[0][n][kind][0] for kind in (0, 1) for n in layers]
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-9)


class Ban(LogitsProcessor):
    """Bars some tokens, or all but some."""

    stateless = True

    def __init__(self, tokens: list[int], keep: bool = False) -> None:
        self.tokens, self.keep = tokens, keep

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        barred = torch.zeros(scores.shape[-1], dtype=torch.bool)
        barred[self.tokens] = True
        return scores.masked_fill(~barred if self.keep else barred, float("-inf"))


def test_the_candidates_are_those_left_by_the_processors(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    free = run(adapter, inputs, 1, lr=5e-3, updates=2)
    top = [int(i) for i in free.logits[0][0].topk(2).indices]
    for objective in ("margin", "paper"):  # the paper's weights, too, are those of the token that can be said
        strategy = LimeCached(updates=2, lr=5e-3, objective=objective)
        check_against_twin(adapter, inputs, strategy, 2, route="dual", processors=[Ban(top)])


def test_a_forced_token_has_the_models_own_rival(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    forced = run(adapter, inputs, 1, lr=5e-3, processors=[Ban([17], keep=True)])
    assert int(forced.sequences[0, -1]) == 17
    call = adapter.capture(inputs)
    media_mask = (adapter.modality_ids(inputs) > 0)[0].double()
    rival = int(adapter.model(**inputs).logits[0, -1].argmax())
    _, parts = twin.phi(adapter, call, ATTN_LRP, [17, rival], media_mask[None], {}, {})
    assert forced.steps[0][0].losses["relevance"][0] == pytest.approx(
        -float((parts[0, 0] - parts[0, 1]).abs().detach()), abs=1e-9
    )
