"""Cached LIME against whole sequences without a cache: values, gradients, trajectories; batches, gates, refresh, drift."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

import limelight
from limelight.decoding import lime_cached as module
from limelight.decoding.lime import optimise as exact_optimise
from limelight.decoding.lime import rewarded
from limelight.decoding.lime_cached import LimeCached, lime_cached
from limelight.errors import LimelightError, SettingError
from limelight.grounding.cache_offsets import Gradient
from limelight.models.adapter import Adapter
from limelight.models.capture import DecoderCall
from limelight.models.families import PaperSettings
from limelight.relevance.attribute import input_relevance
from limelight.relevance.composites import ATTN_LRP, COMPOSITES, CP_LRP, attached
from tests.slow_twins import cache_scope as twin
from tests.slow_twins.llama import weights_of
from tests.tiny import built, llava, llava_inputs, snapshot
from tests.wide import wide
from tests.zoo import FOUNDATION, ZOO

Inputs = dict[str, Tensor]


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


def run(adapter: Adapter, inputs: Inputs, tokens: int = 1, *, processors: Any = None, **settings: Any) -> Any:
    given = settings.pop("strategy", None) or lime_cached(**settings)
    more = {} if processors is None else {"logits_processor": LogitsProcessorList(processors)}
    return adapter.model.generate(
        **inputs, custom_generate=limelight.custom_generate(given), max_new_tokens=tokens, do_sample=False,
        return_dict_in_generate=True, output_logits=True, **more,
    )  # fmt: skip


@contextmanager
def recorded(group: int, per_kv: bool) -> Iterator[list[dict[int, tuple[Tensor, Tensor]]]]:
    """The gradients of every update, materialised: layer -> (dK, dV) ``[B, heads, T, d]``."""
    seen: list[dict[int, tuple[Tensor, Tensor]]] = []
    original = module.gradients_of

    def spy(*args: Any, **kwargs: Any) -> dict[int, Gradient]:
        found = original(*args, **kwargs)
        seen.append({n: (dense(g.scores, g.queries), dense(g.weights, g.out)) for n, g in found.items()})
        return found

    def dense(left: Tensor, right: Tensor) -> Tensor:
        heads = 1 if per_kv else group
        out = left.new_zeros(*left.shape[:2], heads, left.shape[-1], right.shape[-1])
        for r in range(left.shape[2]):
            out[:, :, r % heads] += left[:, :, r, :, None] * right[:, :, r, None, :]
        return out.flatten(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "gradients_of", spy)
        yield seen


def paper_weights(adapter: Adapter, call: DecoderCall, where: Tensor, tau: float, composite: Any = ATTN_LRP) -> Tensor:
    """d paper_loss / d R at zero offsets, by autograd through the loss as it is written."""
    with torch.enable_grad(), attached(adapter, composite):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0]
        relevance = input_relevance(logits[int(logits.argmax())], embeds)[0].detach().requires_grad_(True)
    loss = -torch.log_softmax(relevance / tau, dim=-1)[where].mean()
    return torch.autograd.grad(loss, relevance)[0]


def weights_c(objective: str, reward: str, percept: Tensor, said: int, paper: Tensor | None) -> Tensor:
    """The twin's weights ``[C, T]``: what is rewarded first; words said so far are text (paper: they weigh nothing)."""
    m = nn.functional.pad(percept.double(), (0, said))
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
    call = adapter.capture(inputs).cloned()
    percept = (adapter.modality_ids(inputs) > 0)[0]
    composite = COMPOSITES[strategy.composite]
    where = percept if strategy.reward == "modality" else ~percept
    paper = None
    layers = tuple(sorted(adapter.attention_layers)) if strategy.layers is None else strategy.layers
    settings = twin.Rules(
        strategy.updates, strategy.lr, strategy.objective, strategy.rule, strategy.heads, strategy.kl_weight, layers
    )
    prompt_length = call.length
    for j in range(tokens):
        said = call.length - prompt_length
        if strategy.objective == "paper" and (j == 0 or (strategy.refresh and j % strategy.refresh == 0)):
            grown = nn.functional.pad(where, (0, said), value=strategy.reward == "text")
            paper = paper_weights(adapter, call, grown, strategy.tau, composite)
        c = weights_c(strategy.objective, strategy.reward, percept, said, paper)
        counts = (int(percept.sum()), call.length - int(percept.sum()))
        counts = counts if strategy.reward == "modality" else counts[::-1]

        def sequence(ids: list[int], c: Tensor, dk: Any, dv: Any, call: DecoderCall = call) -> tuple[Tensor, Tensor]:
            if route == "backward":
                return twin.phi(adapter, call, composite, ids, c, dk, dv)
            pairs = [twin.dual(weights_of(adapter.model), call.embeds[0], row, dk, dv) for row in c]
            return pairs[0][0], torch.stack([p[1][ids] for p in pairs])

        ids = output.sequences[:, : inputs["input_ids"].shape[1] + j]

        def choose(logits: Tensor, ids: Tensor = ids) -> list[int]:
            scores = logits[None].clone()
            for processor in processors or ():
                scores = processor(ids, scores)
            return twin.two_best(scores[0])

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
    output = check_against_twin(adapter, llava_inputs(adapter.model), strategy, 2, route=route, tolerance=1e-8)
    curve = output.steps[0][0].losses["total"]
    assert gradient != "true" or curve[-1] < curve[0] - 1e-3


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
    ["qwen2_5_vl", "gemma3", "paligemma2", "mistral3", "llava_onevision", "glm4v", "pixtral", "granite_speech", "exaone4_5"],
)
def test_surrogates_of_other_families(name: str, composite: str) -> None:
    """Biases and M-RoPE, q and k norms and sliding windows, soft-caps, fused gates, multipliers."""
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    strategy = LimeCached(
        updates=2, lr=5e-3, objective="margin", gradient="surrogate", composite=composite, kl_weight=0.5
    )
    check_against_twin(wider, inputs, strategy, 2, route="backward", tolerance=1e-7)


@pytest.mark.parametrize("name", [n for n in FOUNDATION if n != "paligemma"])
def test_finite_differences(name: str) -> None:
    """The true gradient at the second update (offsets not zero, KL at work) against differences of the value itself."""
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    traits = wider.traits
    group = traits.heads // traits.kv_heads
    strategy = LimeCached(updates=2, lr=1e-2, objective="difference", kl_weight=0.7, gradient="true")
    with recorded(group, False) as gradients:
        output = run(wider, inputs, 1, strategy=strategy)
    call = wider.capture(inputs).cloned()
    percept = (wider.modality_ids(inputs) > 0)[0]
    c = weights_c("difference", "modality", percept, 0, None)
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


@pytest.mark.parametrize("refresh", [1, 2])
def test_refreshed_weights_count_the_words_said_so_far(adapter: Adapter, refresh: int) -> None:
    strategy = LimeCached(updates=2, lr=5e-3, objective="paper", refresh=refresh, tau=0.3)
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
    """At zero offsets: exact LIME's gradient with respect to offsets that only the last query would see.

    Exact mode shows its offsets to every query, so the two are compared at the last layer, where no later position sees
    what an earlier one has done with them but through the last query's own row.
    """
    wider = wide(name)
    inputs = ZOO[name].inputs(wider.model)
    call = wider.capture(inputs).cloned()
    paper = wider.family.paper
    where = rewarded(wider.modality_ids(inputs), call.mask, markers=paper.markers)
    traits = wider.traits
    with recorded(traits.heads // traits.kv_heads, False) as mine:
        run(wider, inputs, 1, objective="paper", gradient="surrogate", tau=paper.tau, kl_weight=0.0)
    whole: list[Any] = []
    exact_optimise(
        wider, call, where, lambda logits: logits.argmax(-1),
        PaperSettings(lr=1e-3, kl_weight=0.0, tau=paper.tau, steps=1), trace=whole.append,
    )  # fmt: skip
    number = len(wider.attention_layers)
    last = number - 1
    for kind in (0, 1):
        exact = whole[0].gradients[kind * number + last][0]
        got = mine[0][last][kind][0]
        if kind == 0:  # what earlier queries add to dK comes from their own rows only where they matter: nowhere
            close(got, only_last_query(wider, call, where, paper.tau, last, 0), 1e-8)
        close(got, only_last_query(wider, call, where, paper.tau, last, kind), 1e-8)
        assert exact.shape == got.shape


def only_last_query(adapter: Adapter, call: DecoderCall, where: Tensor, tau: float, layer: int, kind: int) -> Tensor:
    """Gradient of the paper's loss as written (eq. 6), by double backward, to offsets of one layer."""
    traits = adapter.traits
    shape = (traits.heads, call.length, traits.head_dim)
    leaves = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with torch.enable_grad(), attached(adapter, ATTN_LRP, twin.LastQuery({layer: leaves[0]}, {layer: leaves[1]})):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0]
        relevance = input_relevance(logits[int(logits.argmax())], embeds, create_graph=True)[0]
        loss = -torch.log_softmax(relevance / tau, dim=-1)[where[0]].mean()
    return torch.autograd.grad(loss, leaves[kind])[0]


class Ban(LogitsProcessor):
    """Bars some tokens, or all but some."""

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
    strategy = LimeCached(updates=2, lr=5e-3)
    check_against_twin(adapter, inputs, strategy, 2, route="dual", processors=[Ban(top)])


def test_a_forced_token_has_the_models_own_rival(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    forced = run(adapter, inputs, 1, lr=5e-3, processors=[Ban([17], keep=True)])
    assert int(forced.sequences[0, -1]) == 17
    call = adapter.capture(inputs)
    percept = (adapter.modality_ids(inputs) > 0)[0].double()
    rival = int(adapter.model(**inputs).logits[0, -1].argmax())
    _, parts = twin.phi(adapter, call, ATTN_LRP, [17, rival], percept[None], {}, {})
    assert forced.steps[0][0].losses["relevance"][0] == pytest.approx(-float((parts[0, 0] - parts[0, 1]).abs().detach()), abs=1e-9)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"updates": 3, "rule": "adam", "heads": "kv", "gradient": "surrogate"},
    {"objective": "paper", "refresh": 2, "updates": 2},
    {"objective": "normalised", "composite": "cp-lrp", "updates": 2},
    {"objective": "difference", "gate": "uncertain", "threshold": 0.3, "updates": 2},
    {"gate": "ungrounded", "threshold": 0.2, "reward": "text"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())) or "default")
@pytest.mark.parametrize("name", ["llava_gqa", "qwen2_5_vl", "gemma3"])
def test_batch_rows_are_their_runs_alone(name: str, settings: dict[str, Any]) -> None:
    wider = wide(name)
    tiny = ZOO[name]
    assert tiny.batch is not None
    together = run(wider, tiny.batch(wider.model), 3, lr=5e-3, **settings)
    for row in (0, 1):
        inputs = tiny.inputs(wider.model, row=row)
        alone = run(wider, inputs, 3, lr=5e-3, **settings)
        assert alone.sequences[0, -3:].tolist() == together.sequences[row, -3:].tolist()
        for j in range(3):
            close(together.logits[j][row], alone.logits[j][0], 1e-6)
            mine, other = together.steps[row][j], alone.steps[0][j]
            assert mine.intervened == other.intervened
            assert mine.shares == pytest.approx(other.shares, abs=1e-6)
            assert mine.losses.keys() == other.losses.keys()
            for key, curve in mine.losses.items():
                assert curve == pytest.approx(other.losses[key], abs=1e-6)


def test_losses_are_each_rows_own() -> None:
    wider = wide("llava_gqa")
    output = run(wider, ZOO["llava_gqa"].batch(wider.model), 1, updates=2)  # type: ignore[misc]
    a, b = (output.steps[row][0].losses["relevance"] for row in (0, 1))
    assert len(a) == len(b) == 2 and abs(a[0] - b[0]) > 1e-3


@both_rules
def test_an_open_gate_is_no_gate(adapter: Adapter, rule: str) -> None:
    """Two ways through the code: the token's keys are written with the first graph, or by a forward before it."""
    inputs = llava_inputs(adapter.model)
    always = run(adapter, inputs, 4, updates=3, lr=5e-3, rule=rule)
    opened = run(adapter, inputs, 4, updates=3, lr=5e-3, rule=rule, gate="uncertain", threshold=1.0)
    assert torch.equal(always.sequences, opened.sequences)
    for a, b, s, t in zip(always.logits, opened.logits, always.steps[0], opened.steps[0], strict=True):
        close(a, b, 1e-11)
        assert s.intervened and t.intervened
        for key, curve in s.losses.items():
            assert curve == pytest.approx(t.losses[key], abs=1e-11)


def test_a_closed_gate_is_plain_decoding(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    plain = adapter.model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    shut = run(adapter, inputs, 4, lr=1.0, gate="uncertain", threshold=0.0)
    assert torch.equal(plain.sequences, shut.sequences)
    for a, b in zip(plain.logits, shut.logits, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=1e-5, rtol=0)
    assert not any(s.intervened or s.losses for s in shut.steps[0])


def test_the_gate_opens_where_it_says(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    plain = adapter.model.generate(
        **inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    largest = sorted(float(x.softmax(-1).max()) for x in plain.logits)
    between = (largest[2] + largest[3]) / 2
    gated = run(adapter, inputs, 6, lr=1e-9, gate="uncertain", threshold=between)
    want = [float(x.softmax(-1).max()) < between for x in plain.logits]
    assert [s.intervened for s in gated.steps[0]] == want and len(set(want)) == 2
    assert [bool(s.losses) for s in gated.steps[0]] == want


@pytest.mark.parametrize("name", [*FOUNDATION])
@pytest.mark.parametrize("settings", [{}, {"rule": "adam", "updates": 2, "gate": "uncertain", "threshold": 1.0}], ids=["always", "gated"])
def test_without_a_step_it_is_greedy(name: str, settings: dict[str, Any]) -> None:
    """The prefix is the unchanged model's: with offsets of 1e-30 every later token is greedy's, whatever was optimised."""
    given = built(name)
    inputs = ZOO[name].batch(given.model)  # type: ignore[misc]
    plain = given.model.generate(
        **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    output = run(given, inputs, 4, lr=1e-30, **settings)
    assert torch.equal(plain.sequences, output.sequences)
    for a, b in zip(plain.logits, output.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_the_cache_does_not_drift(adapter: Adapter) -> None:
    """However far a token's offsets go, the following token's own logits are those of the plain model on the same words."""
    inputs = llava_inputs(adapter.model)
    output = run(adapter, inputs, 4, lr=0.3, updates=3)
    assert max(float((x - 0).abs().max()) for x in output.logits) > 0
    for j in range(4):
        ids = output.sequences[:, : inputs["input_ids"].shape[1] + j]
        with torch.no_grad():
            own = adapter.model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1]
        step = output.steps[0][j]
        assert step.plain == int(own.argmax())
        assert float((output.logits[j][0] - own).abs().max()) > 1e-3
        for token, _, logit, _ in step.candidates:
            assert logit == pytest.approx(float(own[token]), abs=1e-5)


def test_sampling_draws_from_the_changed_distribution(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)

    def sampled(seed: int, batch: int = 1) -> Any:
        many = {k: v.repeat(batch, *[1] * (v.ndim - 1)) for k, v in inputs.items()}
        return adapter.model.generate(
            **many, custom_generate=limelight.custom_generate(lime_cached(lr=2e-2, updates=2), seed=seed),
            max_new_tokens=4, do_sample=True, temperature=1.3, top_k=20, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip

    one, again, other = sampled(3), sampled(3), sampled(4)
    assert torch.equal(one.sequences, again.sequences)
    pair = sampled(3, batch=2)
    assert torch.equal(pair.sequences[0], one.sequences[0]) and torch.equal(pair.sequences[1], other.sequences[0])
    assert not torch.equal(one.sequences, other.sequences)
    p = torch.log_softmax((one.logits[0][0] / 1.3).topk(20).values, -1)
    choice = int(one.sequences[0, -4])
    rank = (one.logits[0][0].topk(20).indices == choice).nonzero()
    assert one.steps[0][0].logprob == pytest.approx(float(p[rank[0, 0]]), abs=1e-9)


def test_top_k_of_one_still_has_a_margin(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    greedy = run(adapter, inputs, 2, lr=5e-3)
    narrow = adapter.model.generate(
        **inputs, custom_generate=limelight.custom_generate(lime_cached(lr=5e-3), seed=0), max_new_tokens=2,
        do_sample=True, top_k=1, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert torch.equal(greedy.sequences, narrow.sequences)
    for a, b in zip(greedy.logits, narrow.logits, strict=True):
        close(a, b, 1e-10)


def test_bfloat16_offsets_do_not_vanish() -> None:
    """A step of 2e-3 beside keys of size 1 moves bfloat16 logits as it moves float32's."""
    from tests.tiny import fresh

    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        given = fresh("llava_gqa", dtype)
        inputs = ZOO["llava_gqa"].inputs(given.model)
        output = run(given, inputs, 1, lr=2e-2, updates=2, objective="difference")
        own = given.model(**inputs).logits[0, -1].detach().float()
        moved.append(output.logits[0][0].float() - own)
    cosine = float(torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0))
    assert float(moved[0].abs().max()) > 0.05
    assert cosine > 0.9


def test_rows_that_have_ended_do_not_disturb_the_others() -> None:
    wider = wide("llava_gqa")
    inputs = ZOO["llava_gqa"].batch(wider.model)  # type: ignore[misc]
    free = run(wider, inputs, 4, lr=5e-3)
    length = inputs["input_ids"].shape[1]
    stop = int(free.sequences[0, length + 1])
    output = wider.model.generate(
        **inputs, custom_generate=limelight.custom_generate(lime_cached(lr=5e-3)), max_new_tokens=4, do_sample=False,
        eos_token_id=stop, return_dict_in_generate=True,
    )  # fmt: skip
    assert not output.sequences[0, length + 2 :].any()
    assert len(output.steps[0]) == 2
    said = len(output.steps[1])
    assert said > 2
    assert torch.equal(output.sequences[1, : length + said], free.sequences[1, : length + said])


def test_under_inference_mode_and_with_the_model_untouched(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    before = snapshot(adapter.model)
    want = run(adapter, inputs, 3, lr=5e-3, updates=2, objective="paper", refresh=2)
    with torch.inference_mode():
        got = run(adapter, llava_inputs(adapter.model), 3, lr=5e-3, updates=2, objective="paper", refresh=2)
    assert torch.equal(want.sequences, got.sequences)
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"composite": "gradient-input"}, "forward twin"), ({"gate": "often"}, "gate"), ({"threshold": 2.0}, "threshold"),
        ({"objective": "beauty"}, "objective"), ({"gradient": "numeric"}, "gradient"), ({"rule": "sgd"}, "rule"),
        ({"heads": "all"}, "heads"), ({"reward": "audio"}, "reward"), ({"updates": 0}, "updates"), ({"lr": 0.0}, "lr"),
        ({"tau": 0.0}, "tau"), ({"kl_weight": -1.0}, "kl_weight"), ({"refresh": -1}, "refresh"),
        ({"refresh": 2}, "no weights to refresh"), ({"layers": ()}, "no layer"),
        ({"lr": float("nan")}, "lr"), ({"tau": float("inf")}, "tau"),
    ],
    ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingError, match=word) as caught:
        lime_cached(**settings)
    assert caught.value.hint


def test_layers_that_the_model_does_not_have(adapter: Adapter) -> None:
    with pytest.raises(SettingError, match="no attention in layers") as caught:
        run(adapter, llava_inputs(adapter.model), layers=(0, 7))
    assert "[0, 1]" in caught.value.hint


def test_a_prompt_of_nothing_but_pictures_has_no_text_to_reward(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    only = {**inputs, "input_ids": inputs["input_ids"][:, 3:19], "attention_mask": inputs["attention_mask"][:, 3:19]}
    with pytest.raises(LimelightError, match="empty"):
        run(adapter, only, reward="text")
    output = run(adapter, only, 2, objective="normalised")
    assert torch.isfinite(output.logits[0]).all()


def test_settings_are_kept() -> None:
    strategy = lime_cached(updates=2, layers=(0,))
    assert strategy.name == "lime-cached"
    assert LimeCached(**strategy.settings()) == strategy

