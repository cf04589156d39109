"""Exact LIME against a slow twin, its controls and its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import limelight
from limelight.decoding.methods import lime as module
from limelight.decoding.methods.lime import Iteration, Lime, optimise, rewarded
from limelight.errors import NotFiniteError, PromptError, SettingError
from limelight.grounding.objectives import MARGIN, OBJECTIVES, PAPER
from limelight.models.adapter import Adapter
from limelight.models.families import PaperSettings
from limelight.relevance.composites import ATTN_LRP, GRADIENT_INPUT
from tests.slow_twins import lime as twin
from tests.slow_twins.llama import weights_of
from tests.tiny import built, llava, llava_inputs
from tests.zoo import ZOO

SETTINGS = PaperSettings(lr=2e-3, kl_weight=0.3, tau=0.1, steps=4)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


def run(adapter: Adapter, settings: PaperSettings = SETTINGS, **changes: Any) -> tuple[list[Iteration], Any]:
    inputs = llava_inputs(adapter.model)
    seen: list[Iteration] = []
    call = adapter.capture(inputs)
    traced = changes.pop("traced", True)
    result = optimise(
        adapter, call, adapter.modality_ids(inputs) > 0, lambda logits: logits.argmax(-1), settings,
        trace=seen.append if traced else None, **changes,
    )  # fmt: skip
    return seen, result


def generate(adapter: Adapter, inputs: dict[str, Tensor] | None = None, **settings: Any) -> Any:
    inputs = llava_inputs(adapter.model) if inputs is None else inputs
    return adapter.model.generate(
        **inputs, custom_generate=limelight.custom_generate(limelight.lime(**settings)), max_new_tokens=3,
        do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip


@pytest.mark.parametrize("composite", [ATTN_LRP, GRADIENT_INPUT], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_slow_twin(composite: Any, seed: int) -> None:
    model = llava(seed=seed)
    adapter = Adapter(model)
    seen, _ = run(adapter, composite=composite)
    call = adapter.capture(llava_inputs(model))
    modality = (adapter.modality_ids(llava_inputs(model))[0] > 0).nonzero()[:, 0].tolist()
    want = twin.optimise(
        weights_of(model), call.embeds[0], modality, lr=2e-3, tau=0.1, kl_weight=0.3, steps=4,
        rules=composite is ATTN_LRP,
    )  # fmt: skip
    assert len(seen) == len(want) == 4
    for ours, theirs in zip(seen, want, strict=True):
        assert int(ours.target[0]) == theirs.target
        torch.testing.assert_close(ours.logits[0], theirs.logits, atol=1e-10, rtol=0)
        torch.testing.assert_close(ours.relevance[0], theirs.relevance, atol=1e-9, rtol=0)
        assert float(ours.kl[0]) == pytest.approx(theirs.kl, abs=1e-11)
        assert float(ours.relevance_loss[0]) == pytest.approx(theirs.reward, abs=1e-8)
        assert float(ours.loss[0]) == pytest.approx(theirs.reward + 0.3 * theirs.kl, abs=1e-8)
        for g, want_g in zip(ours.gradients, theirs.gradients, strict=True):
            torch.testing.assert_close(g[0], want_g, atol=1e-8 * float(want_g.abs().max()), rtol=0)
        for d, want_d in zip(ours.deltas, theirs.offsets, strict=True):
            torch.testing.assert_close(d[0], want_d, atol=1e-6 * 2e-3, rtol=0)


def test_the_twin_distinguishes_the_two_composites(adapter: Adapter) -> None:
    rules, plain = run(adapter)[0], run(adapter, composite=GRADIENT_INPUT)[0]
    assert float((rules[0].relevance - plain[0].relevance).abs().max()) > 0.1
    assert torch.equal(rules[0].logits, plain[0].logits)


def test_the_reward_rises_and_kl_holds(adapter: Adapter) -> None:
    steps = PaperSettings(lr=1e-3, kl_weight=0.0, tau=0.1, steps=12)
    _, free = run(adapter, steps, traced=False)
    assert free.losses["relevance"][-1] < free.losses["relevance"][0] - 0.1
    held_steps = PaperSettings(lr=1e-3, kl_weight=1e4, tau=0.1, steps=12)
    _, held = run(adapter, held_steps, traced=False)
    assert float(held.losses["kl"][-1]) < float(free.losses["kl"][-1]) / 3
    assert float(free.losses["kl"][0]) == pytest.approx(0.0, abs=1e-12)


def test_the_direction_of_the_kl_is_reference_first(adapter: Adapter) -> None:
    seen, _ = run(adapter, PaperSettings(lr=3e-2, steps=3))
    first, last = torch.log_softmax(seen[0].logits, -1), torch.log_softmax(seen[-1].logits, -1)
    forward, backward = (first.exp() * (first - last)).sum(), (last.exp() * (last - first)).sum()
    assert float(seen[-1].kl) == pytest.approx(float(forward), abs=1e-12)
    assert abs(float(forward - backward)) > 1e-4


def test_one_step_is_plain_greedy(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    plain = adapter.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    out = generate(adapter, steps=1)
    assert torch.equal(out.sequences, plain)
    assert not any(step.intervened for step in out.steps[0])
    assert all(step.plain == step.token and not step.losses for step in out.steps[0])


def test_no_backward_after_the_last_forward(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """S forwards, S - 1 updates; the offsets of the last forward are those of update S - 1."""
    calls = {"hidden": 0, "grad": 0}
    hidden, relevance = Adapter.hidden, module.input_relevance

    def counted_hidden(*args: Any, **kwargs: Any) -> Tensor:
        calls["hidden"] += 1
        return hidden(*args, **kwargs)

    def counted_relevance(*args: Any, **kwargs: Any) -> Tensor:
        calls["grad"] += 1
        return relevance(*args, **kwargs)

    monkeypatch.setattr(Adapter, "hidden", counted_hidden)
    monkeypatch.setattr(module, "input_relevance", counted_relevance)
    seen, traced = run(adapter)
    assert calls == {"hidden": 4, "grad": 4}
    calls.update(hidden=0, grad=0)
    _, bare = run(adapter, traced=False)
    assert calls == {"hidden": 4, "grad": 3}
    torch.testing.assert_close(bare.logits, traced.logits, atol=1e-12, rtol=0)
    for ours, want in zip(bare.deltas.parameters(), seen[2].deltas, strict=True):
        assert torch.equal(ours.detach(), want)


def test_logits_of_the_last_position_only(adapter: Adapter) -> None:
    shapes: set[tuple[int, ...]] = set()
    handle = adapter.head.register_forward_hook(lambda _, __, out: shapes.add(tuple(out.shape)))
    try:
        run(adapter, traced=False)
    finally:
        handle.remove()
    assert shapes == {(1, 1, 128)}


def test_towers_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = built("llava")
    tower, calls = adapter.model.model.vision_tower, []
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        generate(adapter, ZOO["llava"].inputs(adapter.model), steps=3)
    finally:
        handle.remove()
    assert len(calls) <= 2  # generate()'s own encoder pass, and ours


def test_controls(adapter: Adapter) -> None:
    """Text: the same loss on the text positions. Random: offsets of about the gradient's norm, in random directions."""
    inputs = llava_inputs(adapter.model)
    ids, mask = adapter.modality_ids(inputs), inputs["attention_mask"].bool()
    media_mask = rewarded(ids, mask, markers=False)
    assert torch.equal(rewarded(ids, mask, markers=False, reward="text"), ~media_mask)
    assert rewarded(ids, mask, markers=True).sum() == media_mask.sum() + 2
    _, by_gradient = run(adapter, traced=False)
    _, by_chance = run(adapter, traced=False, direction="random", generator=torch.Generator().manual_seed(3))
    _, again = run(adapter, traced=False, direction="random", generator=torch.Generator().manual_seed(3))
    _, other = run(adapter, traced=False, direction="random", generator=torch.Generator().manual_seed(4))
    ours, chance = (torch.cat([p.detach().flatten() for p in r.deltas.parameters()]) for r in (by_gradient, by_chance))
    assert 0.8 < float(chance.norm() / ours.norm()) < 1.35
    assert abs(float(torch.nn.functional.cosine_similarity(ours, chance, dim=0))) < 0.1
    assert torch.equal(by_chance.logits, again.logits)
    assert not torch.equal(by_chance.logits, other.logits)
    assert torch.equal(by_chance.plain, by_gradient.plain)
    text, image = generate(adapter, reward="text", lr=1e-2), generate(adapter, lr=1e-2)
    assert text.steps[0][0].losses["relevance"] != image.steps[0][0].losses["relevance"]


def test_text_control_rewards_generated_words_and_the_paper_does_not(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    original = module.optimise

    def spy(adapter: Adapter, call: Any, modality: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(modality)
        return original(adapter, call, modality, *args, **kwargs)

    monkeypatch.setattr(module, "optimise", spy)
    generate(adapter, steps=1)
    assert seen[-1].shape == (1, 24)
    assert seen[-1][0, -2:].tolist() == [False, False]
    generate(adapter, steps=1, reward="text")
    assert seen[-1][0, -2:].tolist() == [True, True]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_falls_under_its_own_updates(adapter: Adapter, name: str) -> None:
    goal = OBJECTIVES[name]
    settings = PaperSettings(lr=3e-3, kl_weight=0.0, tau=0.1, steps=6)
    if goal is MARGIN:  # a surrogate of a difference of logits: compared on its own losses below
        settings = PaperSettings(lr=1e-3, kl_weight=0.0, tau=0.1, steps=6)
    _, result = run(adapter, settings, goal=goal, traced=False)
    losses = [float(v) for v in result.losses["relevance"]]
    assert min(losses[1:]) < losses[0]
    assert generate(adapter, objective=name, lr=1e-3, steps=2).steps[0][0].losses["relevance"]


def test_chosen_layers_alone_get_offsets(adapter: Adapter) -> None:
    _, both = run(adapter, traced=False)
    _, one = run(adapter, layers=[1], traced=False)
    assert set(both.deltas.keys) == {0, 1}
    assert set(one.deltas.keys) == set(one.deltas.values) == {1}
    assert not torch.allclose(both.logits, one.logits)
    assert generate(adapter, layers=(1,), lr=1e-2).sequences.shape[1] == 25
    for layers in ((7,), ()):
        with pytest.raises(SettingError) as caught:
            generate(adapter, layers=layers)
        assert caught.value.hint


def test_one_offset_a_query_head_under_gqa(adapter: Adapter) -> None:
    seen, result = run(adapter)
    assert adapter.traits.heads == 4
    assert adapter.traits.kv_heads == 2
    assert all(p.shape == (1, 4, 22, 8) for p in result.deltas.parameters())
    key = seen[0].gradients[0][0]
    assert not torch.allclose(key[0], key[1])  # two query heads of one key head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_keeps_float32_offsets_that_act(dtype: torch.dtype) -> None:
    model = llava(dtype=dtype)
    adapter = Adapter(model)
    settings = PaperSettings(lr=3e-4, kl_weight=0.1, tau=0.1, steps=7)
    seen, result = run(adapter, settings)
    assert all(p.dtype == torch.float32 for p in result.deltas.parameters())
    assert all(bool(torch.isfinite(g).all()) for it in seen for g in it.gradients)
    assert result.logits.dtype == torch.float32
    assert float((seen[-1].logits - seen[0].logits).abs().max()) > 0  # 3e-4 beside keys of size 1 would round away
    wide, _ = run(Adapter(llava()), settings)
    for ours, want in zip(seen[0].gradients, wide[0].gradients, strict=True):
        cosine = torch.nn.functional.cosine_similarity(ours.double().flatten(), want.flatten(), dim=0)
        assert float(cosine) > 0.98
    assert model.dtype == dtype
    assert generate(adapter, steps=2).sequences.shape[1] == 25


def test_offsets_move_a_bfloat16_models_logits_as_they_move_a_float64_ones() -> None:
    """Added to K and V themselves they would vanish: bfloat16 has 8 bits, and 1e-3 beside 1 is none of them."""
    settings = PaperSettings(lr=1e-3, kl_weight=0.0, steps=7)
    wide, half = (run(Adapter(llava(dtype=d)), settings)[0] for d in (torch.float64, torch.bfloat16))
    moved = [(s[-1].logits - s[0].logits)[0].double() for s in (wide, half)]
    assert float(moved[1].norm()) == pytest.approx(float(moved[0].norm()), rel=0.2)
    assert float(torch.nn.functional.cosine_similarity(*moved, dim=0)) > 0.85


def test_settings_come_from_the_family_and_from_the_caller() -> None:
    llava_paper = Lime().resolved(built("llava"))
    audio_paper = Lime().resolved(built("qwen2_audio"))
    qwen_paper = Lime().resolved(built("qwen2_5_vl"))
    assert llava_paper == PaperSettings(lr=3e-4, kl_weight=0.1, tau=0.1, steps=7, markers=False)
    assert audio_paper == PaperSettings(lr=5e-4, kl_weight=7e-3, tau=0.1, steps=7, markers=True)
    assert qwen_paper == PaperSettings(lr=3e-4, kl_weight=0.1, tau=0.1, steps=7, markers=True)
    own = Lime(lr=1.0, kl_weight=0.0, tau=2.0, steps=3, markers=False).resolved(built("qwen2_audio"))
    assert own == PaperSettings(lr=1.0, kl_weight=0.0, tau=2.0, steps=3, markers=False)


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"tau": 0.0}, {"steps": 0}, {"steps": 2.5}, {"kl_weight": -0.1},
        {"objective": "none"}, {"composite": "none"}, {"reward": "none"}, {"direction": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_raise(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as caught:
        limelight.lime(**bad)
    assert caught.value.hint


def test_relevance_and_losses_of_every_step(adapter: Adapter) -> None:
    inputs = llava_inputs(adapter.model)
    out = adapter.model.generate(
        **inputs, custom_generate=limelight.custom_generate(limelight.lime(steps=3, lr=1e-3), details=True),
        max_new_tokens=2, do_sample=False, return_dict_in_generate=True,
    )  # fmt: skip
    for number, step in enumerate(out.steps[0]):
        assert set(step.losses) == {"kl", "relevance", "total"}
        assert all(len(v) == 2 for v in step.losses.values())
        assert step.intervened
        assert step.relevance is not None
        assert step.relevance.target == step.token
        assert step.relevance.scores.shape == (22 + number,)
        assert sum(step.shares.values()) == pytest.approx(1.0)


def test_relevance_is_that_of_the_distribution_the_token_came_from(adapter: Adapter) -> None:
    """With its offsets in force: the last forward's logit is the one explained."""
    out = adapter.model.generate(
        **llava_inputs(adapter.model),
        custom_generate=limelight.custom_generate(limelight.lime(steps=3, lr=1e-2), details=True),
        max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    step = out.steps[0][0]
    assert step.relevance.logit == pytest.approx(float(out.logits[0][0, step.token]), abs=1e-10)
    plain = limelight.attribute(adapter, llava_inputs(adapter.model), step.token)
    assert abs(plain.logit - step.relevance.logit) > 1e-4


def test_rows_of_a_batch_are_explained_as_they_are_alone() -> None:
    """Losses, relevance and shares of left-padded rows, offsets in force."""
    adapter = built("llava", torch.float64)
    batch = ZOO["llava"].batch
    assert batch is not None

    def explained(inputs: dict[str, Tensor]) -> Any:
        fn = limelight.custom_generate(limelight.lime(steps=3, lr=1e-2), details=True)
        return adapter.model.generate(
            **inputs, custom_generate=fn, max_new_tokens=2, do_sample=False, return_dict_in_generate=True
        )

    together = explained(batch(adapter.model))
    for row in (0, 1):
        alone = explained(ZOO["llava"].inputs(adapter.model, row=row))
        for both, own in zip(together.steps[row], alone.steps[0], strict=True):
            assert both.token == own.token
            assert both.losses["total"] == pytest.approx(own.losses["total"], rel=1e-5)
            torch.testing.assert_close(
                both.relevance.scores[-len(own.relevance.scores) :], own.relevance.scores, atol=1e-5, rtol=0
            )
            assert both.shares == pytest.approx(own.shares, abs=1e-5)


def test_nothing_to_reward_raises(adapter: Adapter) -> None:
    ids = torch.tensor([[1, 31, 32, 41]])
    with pytest.raises(PromptError) as caught:
        adapter.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            custom_generate=limelight.custom_generate(limelight.lime()), max_new_tokens=1,
        )  # fmt: skip
    assert caught.value.hint


def test_nan_weights_raise() -> None:
    model = llava()
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        generate(Adapter(model), steps=2)
    assert caught.value.hint


def test_repr_and_settings_reproduce_the_strategy() -> None:
    strategy = limelight.lime(lr=1e-3, objective="margin")
    assert limelight.lime(**strategy.settings()) == strategy
    assert strategy.name == "lime"
    assert OBJECTIVES["paper"] is PAPER
