"""Whoever asks for the relevance of the emitted tokens gets it, whatever chose them; and it is not the meter's quantity."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import limelight
from limelight.decoding import registry
from limelight.decoding.loop import GroundedOutput
from limelight.decoding.methods.meter import meter
from limelight.decoding.strategy import Strategy
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute_generated
from limelight.types import Generation, Prompt, Span, Step, mean_parts
from tests.decoding.peers import deep, deep_inputs, double, emitted, inputs_of, run
from tests.tiny import snapshot, vision_processor
from tests.zoo import ZOO

SETTINGS: dict[str, dict[str, Any]] = {
    "aad": {"silence": -1.5}, "icd": {"instruction": (60, 61)}, "lime": {"steps": 2}, "opera": {"beams": 2, "candidates": 2},
}  # fmt: skip
OWN = ("greedy", "lime", "lrp-beam")  # these compute it as part of their own work
METERED = ("lime-cached", "meter", "relevance-contrastive")


def made(name: str) -> Strategy:
    return registry.strategy(name, **SETTINGS.get(name, {}))


def wanted(adapter: Adapter, inputs: Mapping[str, Any], out: GroundedOutput, row: int = 0) -> list[limelight.Relevance]:
    """The unchanged model's, of the row's answer."""
    n = len((out.steps or ())[row])
    return attribute_generated(adapter, inputs, emitted(out, inputs)[row, :n], row=row)


def check(steps: tuple[Step, ...], expected: list[limelight.Relevance]) -> None:
    assert len(steps) == len(expected)
    for step, want in zip(steps, expected, strict=True):
        assert step.relevance is not None
        assert step.relevance.target == want.target == step.token
        n = len(step.relevance.tokens)
        torch.testing.assert_close(step.relevance.scores, want.scores[:n], atol=1e-6, rtol=1e-5)
        assert step.shares == step.relevance.shares()
        assert sum(step.shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(set(registry.strategies()) - {"reconsider", "look-again"}))
def test_every_strategy_honours_it_in_a_batch_and_at_every_step(name: str) -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio", "batch")
    heard: list[tuple[int, Step]] = []
    out = run(adapter, inputs, made(name), bind={"details": True, "on_step": lambda *told: heard.append(told)})
    plain = run(adapter, inputs, made(name))
    assert torch.equal(out.sequences, plain.sequences)
    assert out.steps is not None
    for row, steps in enumerate(out.steps):
        assert [s for r, s in heard if r == row] == list(steps)
        assert all(s.relevance is not None for s in steps)
        if name != "lime":  # that of its own, optimised forward
            check(steps, wanted(adapter, inputs, out, row))


@pytest.mark.parametrize("name", sorted(set(registry.strategies()) - {"aad", "reconsider", "look-again"}))
def test_every_strategy_that_sees_honours_it(name: str) -> None:
    adapter, inputs = deep(), deep_inputs()
    out = run(adapter, inputs, made(name), bind={"details": True})
    assert out.steps is not None
    if name == "lime":
        assert all(s.relevance is not None and s.shares == s.relevance.shares() for s in out.steps[0])
    else:
        check(out.steps[0], wanted(adapter, inputs, out))


@pytest.mark.parametrize("name", ["blip2", "gemma3", "gemma3n", "mllama", "qwen2_5_vl_video", "qwen3_vl", "salmonn"])
def test_for_every_way_the_media_enter(name: str) -> None:
    adapter, inputs = double(name), inputs_of(name)
    out = run(adapter, inputs, made("m3id"), n=2, bind={"details": True, "parent_model": adapter})
    assert out.steps is not None
    check(out.steps[0], wanted(adapter, inputs, out)[: len(out.steps[0])])


@pytest.mark.parametrize("strategy", ["vcd", "meter", "pai"])
def test_sampled_rows_that_end_at_different_times(strategy: str) -> None:
    adapter, inputs = double("qwen2_audio"), inputs_of("qwen2_audio", "batch")
    settings: dict[str, Any] = {"n": 6, "do_sample": True, "bind": {"seed": 3, "details": True}}
    free = run(adapter, inputs, made(strategy), **settings)
    end = int(emitted(free, inputs)[0, 1])
    out = run(adapter, inputs, made(strategy), eos_token_id=end, pad_token_id=0, **settings)
    assert out.steps is not None
    lengths = [len(s) for s in out.steps]
    assert lengths[0] == 2
    assert lengths[1] != 2
    for row in (0, 1):
        check(out.steps[row], wanted(adapter, inputs, out, row))


def test_a_strategy_after_a_marker_and_one_with_a_meter() -> None:
    adapter, inputs = deep(), deep_inputs()
    marker = int(emitted(run(adapter, inputs, made("greedy")), inputs)[0, 0])
    for strategy in (limelight.after(marker, made("relevance-contrastive")), meter(made("vcd"))):
        out = run(adapter, inputs, strategy, bind={"details": True})
        assert out.steps is not None
        check(out.steps[0], wanted(adapter, inputs, out))
    assert all(s.contributions for s in out.steps[0])


def test_the_model_is_left_as_it_was() -> None:
    adapter = Adapter(ZOO["qwen2_audio"].build())
    inputs = ZOO["qwen2_audio"].inputs(adapter.model)
    run(adapter, inputs, made("greedy"), n=1)
    before = snapshot(adapter.model)
    run(adapter, inputs, made("deco"), n=2, bind={"details": True})
    assert snapshot(adapter.model) == before


@pytest.mark.parametrize("name", sorted(set(registry.strategies()) - {"aad", "reconsider", "look-again"}))
def test_none_and_false_cost_no_backward_pass_of_their_own(name: str) -> None:
    adapter, inputs = deep(), deep_inputs()
    for details in (None, False):
        out = run(adapter, inputs, made(name), n=2, bind={"details": details})
        assert out.steps is not None
        for step in out.steps[0]:
            assert (step.relevance is not None) == (details is None and name in OWN)
            assert bool(step.shares) == (step.relevance is not None)
            assert bool(step.contributions) == (name in METERED)


def test_under_inference_mode() -> None:
    adapter, inputs = double("llava"), inputs_of("llava")
    with torch.inference_mode():
        out = run(adapter, inputs, made("vcd"), bind={"details": True})
    assert out.steps is not None
    check(out.steps[0], wanted(adapter, inputs, out))


def test_shares_and_contributions_are_two_quantities() -> None:
    """One definition each: neither takes the other's place, and what ran beside does not change them."""
    adapter, inputs = deep(), deep_inputs()
    both = (run(adapter, inputs, made("meter"), bind={"details": True}).steps or ())[0]
    backward = (run(adapter, inputs, made("greedy"), bind={"details": True}).steps or ())[0]
    forward = (run(adapter, inputs, made("meter")).steps or ())[0]
    for one, greedy, metered in zip(both, backward, forward, strict=True):
        assert one.shares == pytest.approx(greedy.shares, abs=1e-9)
        assert one.contributions == pytest.approx(metered.contributions, abs=1e-9)
        assert one.shares["image"] != pytest.approx(one.contributions["image"], abs=1e-3)
        phi, logit = next((phi, logit) for t, _, logit, phi in one.candidates if t == one.token)
        share = abs(phi) / (abs(phi) + abs(logit - phi))
        assert one.contributions == pytest.approx({"image": share, "text": 1 - share})


def test_an_answers_means_keep_the_two_apart() -> None:
    prompt = Prompt({}, ("a",), (Span(0, 1, "text"),))
    steps = (
        Step(1, "x", shares={"text": 0.4, "image": 0.6}),
        Step(2, "y", contributions={"text": 0.9, "image": 0.1}),
        Step(3, "z", shares={"text": 0.8, "image": 0.2}, contributions={"text": 0.7, "image": 0.3}),
    )
    said = Generation("", (1, 2, 3), steps, prompt)
    assert said.shares() == pytest.approx({"text": 0.6, "image": 0.4})
    assert replace(said, ended=True).shares() == pytest.approx({"text": 0.4, "image": 0.6})  # the end is no part of it
    assert said.contributions() == pytest.approx({"text": 0.8, "image": 0.2})
    assert mean_parts([]) == mean_parts([{}]) == {}


@pytest.mark.parametrize("way", [limelight.generate, limelight.transcribe])
def test_the_default_asks_for_what_is_the_strategys_own(way: Any) -> None:
    assert inspect.signature(way).parameters["relevance"].default is None


def test_generate_and_generate_many() -> None:
    from PIL import Image

    adapter = limelight.wrap(ZOO["llava"].build(), vision_processor())
    ask = {
        "messages": "what is it ?",
        "media": {"image": Image.new("RGB", (40, 30), (200, 120, 40))},
        "max_new_tokens": 3,
    }
    for name in ("vcd", "meter", "lime-cached", "relevance-contrastive"):
        said = limelight.generate(adapter, strategy=name, relevance=True, **ask)
        assert all(s.relevance is not None for s in said.steps)
        assert sum(said.shares().values()) == pytest.approx(1.0)
        assert limelight.generate(adapter, strategy=name, **ask).shares() == {}
    prompts = [adapter.prepare(words, ask["media"]) for words in ("what is it ?", "is there a red cup here ?")]
    many = limelight.generate_many(adapter, requests=prompts, strategy="vcd", relevance=True, max_new_tokens=3)
    for prompt, answer in zip(prompts, many, strict=True):
        alone = limelight.generate(adapter, messages=prompt, strategy="vcd", relevance=True, max_new_tokens=3)
        assert [s.shares for s in answer.steps] == [pytest.approx(s.shares, abs=1e-4) for s in alone.steps]
