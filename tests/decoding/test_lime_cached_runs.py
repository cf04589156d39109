"""Cached LIME as it is run: batches, gates, drift, sampling, narrow dtypes, ended rows, settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import limelight
from limelight.decoding.methods.lime_cached import LimeCached, lime_cached
from limelight.errors import LimelightError, SettingError
from limelight.models.adapter import Adapter
from limelight.relevance.composites import ATTN_LRP
from tests.decoding.cached import close, recorded, run
from tests.slow_twins import cache_scope as twin
from tests.tiny import built, fresh, llava, llava_inputs, snapshot
from tests.wide import latent, wide
from tests.zoo import FOUNDATION, ZOO


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(llava())


both_rules = pytest.mark.parametrize("rule", ["adam", "normalised"])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"updates": 3, "rule": "adam", "heads": "kv", "gradient": "surrogate"},
    {"objective": "paper", "refresh": 2, "updates": 2},
    {"objective": "normalised", "composite": "cp-lrp", "updates": 2},
    {"objective": "difference", "gate": "uncertain", "threshold": 0.3, "updates": 2},
    {"gate": "ungrounded", "threshold": 0.2, "reward": "text"},
]


# every setting on one model, two of them on each kind of mask, position and layer
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(("llava_gqa", s) for s in SETTINGS),
        *((m, s) for m in ("qwen2_5_vl", "gemma3", "gemma4_moe") for s in SETTINGS[:2]),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())) or "default",
)
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
            assert mine.contributions == pytest.approx(other.contributions, abs=1e-6)
            assert mine.losses.keys() == other.losses.keys()
            for key, curve in mine.losses.items():
                assert curve == pytest.approx(other.losses[key], abs=1e-6)


@pytest.mark.parametrize("gradient", ["true", "surrogate"])
def test_offsets_of_latent_attention(gradient: str) -> None:
    """Keys of 12, values of 8: one update lands where the whole sequence with those offsets is."""
    given = latent()
    inputs = ZOO["kimi_k25"].inputs(given.model)
    with recorded(1, False) as gradients:
        output = run(given, inputs, 1, lr=5e-3, gradient=gradient)
    (step,) = gradients
    assert [x.shape[-1] for x in step[0]] == [12, 8]
    size = sum(float(g.pow(2).sum()) for pair in step.values() for g in pair) ** 0.5
    scale = 5e-3 * sum(g.numel() for pair in step.values() for g in pair) ** 0.5 / size
    dk, dv = ({n: -scale * pair[kind][0] for n, pair in step.items()} for kind in (0, 1))
    c = torch.zeros(1, gradients.call.length, dtype=torch.float64)
    want, _ = twin.phi(given, gradients.call, ATTN_LRP, [], c, dk, dv)
    close(output.logits[0][0], want.detach(), 1e-9)
    assert float((want.detach() - given.model(**inputs).logits[0, -1].detach()).abs().max()) > 1e-2


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


def test_the_gate_opens_at_its_threshold(adapter: Adapter) -> None:
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
@pytest.mark.parametrize(
    "settings", [{}, {"rule": "adam", "updates": 2, "gate": "uncertain", "threshold": 1.0}], ids=["always", "gated"]
)
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


@pytest.mark.parametrize("objective", ["difference", "paper"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_offsets_do_not_vanish_against_narrow_keys(dtype: torch.dtype, objective: str) -> None:
    """Steps of 4e-3 beside keys of size 1 (bfloat16 knows steps of 8e-3 there) move the logits as they move float32's."""
    for name in ("llava_gqa", "qwen2_5_vl", "gemma3"):
        moved = []
        for kind in (torch.float32, dtype):
            given = fresh(name, kind)
            inputs = ZOO[name].inputs(given.model)
            output = run(given, inputs, 1, lr=4e-3, updates=2, objective=objective)
            with torch.no_grad():
                moved.append(output.logits[0][0] - given.model(**inputs).logits[0, -1].float())
        assert moved[1].dtype == torch.float32
        assert float(moved[0].abs().max()) > 0.05
        assert float(nn.functional.cosine_similarity(moved[0], moved[1], dim=0)) > 0.97


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
        ({"composite": "gradient-input"}, "forward mode"), ({"gate": "often"}, "gate"), ({"threshold": 2.0}, "threshold"),
        ({"objective": "beauty"}, "objective"), ({"gradient": "numeric"}, "gradient"), ({"rule": "sgd"}, "rule"),
        ({"heads": "all"}, "heads"), ({"reward": "audio"}, "reward"), ({"updates": 0}, "updates"), ({"lr": 0.0}, "lr"),
        ({"tau": 0.0}, "tau"), ({"kl_weight": -1.0}, "kl_weight"), ({"refresh": -1}, "refresh"),
        ({"refresh": 2}, "no weights to refresh"), ({"layers": ()}, "layers"), ({"layers": 1}, "layers"), ({"layers": ("0",)}, "layers"),
        ({"updates": 1.5}, "must be integers"), ({"refresh": "often", "objective": "paper"}, "must be integers"),
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
