"""Every strategy of the registry is held to what its ``capabilities`` claim."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

import limelight
from limelight.decoding.answer import answer
from limelight.decoding.loop import custom_generate
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import Capabilities, Strategy, capabilities_of
from limelight.errors import PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.types import Prompt
from tests.tiny import built
from tests.zoo import ZOO

NAMES = sorted(strategies())
TOKENS = 3
# Settings under which a method acts on miniatures, within a test's time.
SETTINGS: dict[str, dict[str, Any]] = {
    "lime": {"steps": 3, "lr": 1e-2}, "lime-cached": {"lr": 1e-2}, "memvr": {"threshold": 0.0}, "pai": {"start": 0},
    "opera": {"beams": 2, "candidates": 2}, "lrp-beam": {"beams": 2, "length": 2}, "m3id": {"variant": "released"}, "deco": {"layers": (0, 1)},
    "ilvad": {"tau": 1.0},
    "look-again": {"when": "always", "least_gain": 0.0},
}  # fmt: skip
# Their second prompt leaves the media out, so that ids are all they need beside the cache.
WORDS_ARE_ENOUGH = ("m3id", "pai")
WORDS = ("Is there a cup in the picture?", "There is a dog. Is there a dog in the picture?", "Describe the picture.")
every = pytest.mark.parametrize("name", NAMES)


def made(name: str, **more: Any) -> Strategy:
    return limelight.strategy(name, **{**SETTINGS.get(name, {}), **more})


@cache
def loaded(sound: bool) -> Adapter:
    return limelight.load("demo-audio" if sound else "demo-vision")


@cache
def prompts(sound: bool) -> tuple[Prompt, ...]:
    """Three prompts of unequal length, each with a medium of its own."""
    adapter = loaded(sound)
    draw = np.random.default_rng(0)
    media: list[Any] = (
        [{"audio": (draw.standard_normal(16000).astype(np.float32) * 0.1, 16000)} for _ in WORDS]
        if sound
        else [{"image": Image.new("RGB", (112, 112), c)} for c in ("white", "red", "green")]
    )
    found = tuple(adapter.prepare(w, m) for w, m in zip(WORDS, media, strict=True))
    assert len({len(p.tokens) for p in found}) == 3
    return found


@every
def test_the_claims_are_plain_values(name: str) -> None:
    claimed = capabilities_of(made(name))
    assert isinstance(claimed, Capabilities)
    assert claimed is capabilities_of(made(name)) or claimed == capabilities_of(made(name))


@every
def test_rows_of_a_batch_equal_single_rows(name: str) -> None:
    strategy, sound = made(name), name == "aad"
    if not capabilities_of(strategy).batches:
        pytest.skip(f"{name} makes no claim")
    adapter, asked = loaded(sound), prompts(sound)
    together = answer(adapter, asked, strategy, top_logprobs=3, max_new_tokens=TOKENS)
    for prompt, row in zip(asked, together, strict=True):
        (alone,) = answer(adapter, [prompt], strategy, top_logprobs=3, max_new_tokens=TOKENS)
        assert row.token_ids == alone.token_ids
        for a, b in zip(row.steps, alone.steps, strict=True):
            assert (a.intervened, a.plain) == (b.intervened, b.plain)
            assert a.contributions == pytest.approx(b.contributions, abs=1e-3)
            assert [v for _, v in a.top_logprobs] == pytest.approx([v for _, v in b.top_logprobs], abs=1e-3)


@every
def test_needs_media_is_declared_correctly(name: str) -> None:
    adapter = loaded(False)
    ask = [adapter.prepare("Is there a cup?")]
    if not capabilities_of(made(name)).needs_media:
        assert answer(adapter, ask, made(name), max_new_tokens=2)[0].token_ids
        return
    with pytest.raises(PromptError, match=name):
        answer(adapter, ask, made(name), max_new_tokens=2)


@every
def test_gradients_is_declared_correctly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    grad, backward = torch.autograd.grad, torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (ran.append("grad"), grad(*a, **k))[1])
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (ran.append("backward"), backward(*a, **k))[1])
    sound = name == "aad"
    answer(loaded(sound), prompts(sound)[:1], made(name), max_new_tokens=2)
    assert bool(ran) == capabilities_of(made(name)).gradients


@pytest.mark.parametrize("settings", [{"steps": 1}, {"direction": "random"}], ids=str)
def test_claims_follow_the_settings(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = limelight.lime(**settings)
    assert not strategy.capabilities.gradients

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    assert answer(loaded(False), prompts(False)[:1], strategy, max_new_tokens=1)[0].token_ids


@every
def test_meter_is_declared_correctly(name: str) -> None:
    sound = name == "aad"
    strategy = made(name)
    (said,) = answer(loaded(sound), prompts(sound)[:1], strategy, max_new_tokens=2)
    claimed = capabilities_of(strategy).meter
    assert all(bool(s.contributions) == bool(claimed) for s in said.steps)
    assert claimed == strategy.settings().get("composite" if claimed else "", "")
    beside = limelight.meter(strategy)
    assert (beside is strategy) == bool(claimed)
    assert limelight.meter(beside) is beside  # never two
    with pytest.raises(SettingError, match="cp-lrp"):
        limelight.meter(beside, composite="cp-lrp")


@every
def test_an_added_meter_changes_no_token(name: str) -> None:
    sound = name == "aad"
    adapter, asked = loaded(sound), prompts(sound)[:1]
    (plain,) = answer(adapter, asked, made(name), max_new_tokens=TOKENS)
    (seen,) = answer(adapter, asked, limelight.meter(made(name)), max_new_tokens=TOKENS)
    assert seen.token_ids == plain.token_ids
    assert [s.logprob for s in seen.steps] == pytest.approx([s.logprob for s in plain.steps], abs=1e-4)
    assert all(s.contributions for s in seen.steps)


def cached_turn(adapter: Adapter, inputs: dict[str, Tensor], *, cut: int) -> dict[str, Any]:
    """Inputs whose ids are whole but for a filled cache of the first ``cut`` positions; media are in the cache alone."""
    first = {k: v[:, :cut] if v.shape == inputs["input_ids"].shape else v for k, v in inputs.items()}
    cache_ = DynamicCache(config=adapter.model.config.get_text_config(decoder=True))
    with torch.no_grad():
        adapter.model(**first, past_key_values=cache_, use_cache=True)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "past_key_values": cache_}


@every
def test_continues_cache_is_declared_correctly(name: str) -> None:
    family = "qwen2_audio" if name == "aad" else "llava"
    adapter = built(family)
    inputs = ZOO[family].inputs(adapter.model)
    more = {"icd": {"instruction": (60, 61)}, "aad": {"silence": 0.0}}.get(name, {})
    strategy = made(name, **more)
    given = cached_turn(adapter, inputs, cut=inputs["input_ids"].shape[1] - 1)
    claimed = capabilities_of(strategy)

    def decoded() -> Any:
        return adapter.model.generate(
            **copy.deepcopy(given), custom_generate=custom_generate(strategy), max_new_tokens=2, do_sample=False
        )

    if claimed.continues_cache and not claimed.second_prompt:
        whole = adapter.model.generate(
            **inputs, custom_generate=custom_generate(strategy, tensors=inputs), max_new_tokens=2, do_sample=False
        )
        assert torch.equal(decoded(), whole)
        return
    if name in WORDS_ARE_ENOUGH:
        assert decoded().shape[1] > inputs["input_ids"].shape[1]
        return
    with pytest.raises((UnsupportedError, SettingError)):
        decoded()


@every
def test_after_is_declared_correctly(name: str) -> None:
    sound = name == "aad"
    adapter, asked, strategy = loaded(sound), prompts(sound)[:1], made(name)
    if not capabilities_of(strategy).after:
        with pytest.raises(SettingError, match="marker"):
            limelight.after("</think>", strategy)
        return
    (plain,) = answer(adapter, asked, limelight.greedy(), max_new_tokens=TOKENS)
    (said,) = answer(adapter, asked, limelight.after(plain.token_ids[0], strategy), max_new_tokens=TOKENS)
    assert said.token_ids[0] == plain.token_ids[0]


def test_wrappers_change_what_they_change() -> None:
    inner = limelight.lime_cached()
    waiting = limelight.after("</think>", inner)
    assert capabilities_of(waiting) == replace(
        inner.capabilities, batches=False, second_prompt=True, continues_cache=True, meter="", after=False
    )
    assert limelight.meter(waiting) is not waiting  # it measures the answer alone
    assert capabilities_of(limelight.meter(limelight.greedy())).meter == "attnlrp"
    with pytest.raises(SettingError, match="marker"):
        limelight.after("</answer>", waiting)


def test_a_strategy_without_capabilities_gets_the_conservative_defaults() -> None:
    @dataclass(frozen=True)
    class Silent:
        name: str = "silent"

        def settings(self) -> dict[str, Any]:
            return {}

        def session(self, run: Any) -> Any:
            return limelight.greedy().session(run)

    assert capabilities_of(Silent()) == Capabilities()
    assert not Capabilities().batches
    adapter = loaded(False)
    assert answer(adapter, prompts(False)[:1], Silent(), max_new_tokens=2)[0].token_ids
    with pytest.raises(PromptError, match="silent"):
        answer(adapter, [adapter.prepare("Is there a cup?")], Silent(), max_new_tokens=2)
