"""Calls of generate() whose cache holds part of the prompt: the oracle is plain generate(), and the same call without a
cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import limelight
from limelight.decoding.loop import custom_generate
from limelight.decoding.strategy import capabilities_of
from limelight.errors import PromptError, UnsupportedError
from tests.models.runtime.test_locks import STRATEGIES
from tests.tiny import built, fresh
from tests.zoo import ZOO

NAMES = ("llava", "qwen2_5_vl", "qwen2_audio", "gemma3")
KEEP = {"return_dict_in_generate": True, "output_logits": True, "disable_compile": True}
MORE: dict[str, dict[str, Any]] = {**STRATEGIES, "icd": {"instruction": (60, 61)}, "deco": {"layers": (0, 1)}}
CLAIMED = {name: capabilities_of(limelight.strategy(name, **given)) for name, given in MORE.items()}
OWN = [n for n, c in CLAIMED.items() if not c.continues_cache]  # their answer needs the whole prompt
ALONE = [n for n, c in CLAIMED.items() if c.continues_cache and not c.second_prompt]  # need nothing but the cache
Inputs = dict[str, Tensor]


def grown(inputs: Inputs, ids: Tensor) -> Inputs:
    """The inputs of a longer conversation: its ids, and text types for what is new."""
    count = ids.shape[1] - inputs["input_ids"].shape[1]
    longer = {
        k: torch.nn.functional.pad(v, (0, count), value=int(k == "attention_mask"))
        for k, v in inputs.items()
        if v.shape == inputs["input_ids"].shape and k != "input_ids"
    }
    mask = longer.get("attention_mask", torch.ones_like(ids))
    return {**inputs, **longer, "input_ids": ids, "attention_mask": mask}


def words_only(inputs: Inputs) -> Inputs:
    """What a second turn gives: its media are in the cache."""
    return {k: inputs[k] for k in ("input_ids", "attention_mask")}


def strategy_of(name: str) -> Any:
    return limelight.strategy(name, **MORE[name])


def made(adapter: Any, inputs: Inputs, strategy: Any = None, bound: Any = None, **more: Any) -> Any:
    own = {} if strategy is None else {"custom_generate": custom_generate(strategy, **(bound or {}))}
    settings = {"max_new_tokens": 4, "do_sample": False, **KEEP, **more}
    return adapter.model.generate(**inputs, **own, **settings)


def turn(adapter: Any, inputs: Inputs, cache: Any = None, strategy: Any = None) -> tuple[Any, Inputs]:
    """A first answer, and the inputs of a second question."""
    given = {} if cache is None else {"past_key_values": cache}
    first = made(adapter, inputs, strategy, **given)
    more = torch.tensor([[61, 17, 90]] * len(first.sequences))
    return first.past_key_values, grown(inputs, torch.cat([first.sequences, more], dim=1))


def beginning(adapter: Any, inputs: Inputs, count: int) -> Any:
    """A cache of the first positions of a prompt, filled by the model itself."""
    cut = {k: v[:, :count] if v.shape == inputs["input_ids"].shape else v for k, v in inputs.items()}
    if not bool((adapter.modality_ids(inputs)[:, :count] > 0).any()):
        cut = words_only(cut)
    cache = DynamicCache(config=adapter.model.config.get_text_config(decoder=True))
    with torch.no_grad():
        adapter.model(**cut, past_key_values=cache, use_cache=True)
    return cache


def inputs_of(name: str, adapter: Any, rows: int = 1) -> Inputs:
    tiny = ZOO[name]
    if rows == 1:
        return tiny.inputs(adapter.model)
    assert tiny.batch is not None
    return tiny.batch(adapter.model)


def same(got: Any, want: Any, tolerance: float = 2e-4) -> None:
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_is_that_of_plain_generate(name: str, rows: int) -> None:
    adapter = built(name)
    cache, inputs = turn(adapter, inputs_of(name, adapter, rows))
    asked = words_only(inputs)
    want = made(adapter, asked, past_key_values=copy.deepcopy(cache))
    mine = copy.deepcopy(cache)
    got = made(adapter, asked, limelight.greedy(), past_key_values=mine)
    same(got, want, 0)
    assert got.past_key_values is mine  # the caller's own object goes on, as in transformers
    assert mine.get_seq_length() == want.past_key_values.get_seq_length()
    for a, b in zip(mine.layers, want.past_key_values.layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", MORE)
def test_every_strategy_continues_from_a_cache_as_without_one(name: str, strategy: str) -> None:
    adapter = built(name)
    chosen = strategy_of(strategy)
    cache, inputs = turn(adapter, inputs_of(name, adapter))
    try:
        want = made(adapter, inputs, chosen, {"tensors": inputs})
    except UnsupportedError:
        pytest.skip("not on this family")
    turn(adapter, inputs_of(name, adapter))  # positions that Qwen keeps on the model are the first turn's again
    mine = copy.deepcopy(cache)
    got = made(adapter, words_only(inputs), chosen, {"tensors": inputs}, past_key_values=mine)
    same(got, want)
    assert got.past_key_values is mine
    again = made(adapter, inputs, chosen, {"tensors": inputs}, past_key_values=copy.deepcopy(cache))  # media once more
    same(again, want)
    assert mine.get_seq_length() == got.sequences.shape[1] - 1


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("strategy", ["meter", "m3id", "vcd", "pai", "lime", "opera"])
def test_padded_batches_go_on_too(name: str, strategy: str) -> None:
    adapter = built(name)
    chosen = strategy_of(strategy)
    first = inputs_of(name, adapter, 2)
    cache, inputs = turn(adapter, first)
    want = made(adapter, inputs, chosen, {"tensors": inputs})
    turn(adapter, first)
    same(made(adapter, words_only(inputs), chosen, {"tensors": inputs}, past_key_values=cache), want)


@pytest.mark.parametrize("strategy", MORE)
@pytest.mark.parametrize("name", NAMES[:3])
def test_the_cache_of_an_answer_serves_the_next_turn(name: str, strategy: str) -> None:
    adapter = built(name)
    chosen = strategy_of(strategy)
    inputs = inputs_of(name, adapter)
    try:
        first = made(adapter, inputs, chosen, {"tensors": inputs})
    except UnsupportedError:
        pytest.skip("not on this family")
    cache = first.past_key_values
    assert cache.get_seq_length() == first.sequences.shape[1] - 1
    ids = torch.cat([first.sequences, torch.tensor([[61, 17]])], dim=1)
    longer = grown(inputs, ids)
    if strategy in (
        "pai",
        "memvr",
        "iat",
        "vaf",
        "rudder",
        "kvsmooth",
        "vista",
        "ilvad",
    ):  # their keys and values are those of the altered model
        want = made(adapter, words_only(longer), past_key_values=copy.deepcopy(cache))
        same(made(adapter, words_only(longer), limelight.greedy(), past_key_values=cache), want, 0)
        return
    got = made(adapter, words_only(longer), limelight.greedy(), past_key_values=cache)
    same(got, made(adapter, longer))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", ["greedy", "meter", "vcd", "dola"])
@pytest.mark.parametrize("kept", [2, -1])
def test_a_cache_that_holds_some_of_the_prompt(name: str, strategy: str, kept: int) -> None:
    adapter = built(name)
    inputs = inputs_of(name, adapter)
    text = int((adapter.modality_ids(inputs)[0] > 0).nonzero()[0, 0])
    count = min(kept, text) if kept > 0 else inputs["input_ids"].shape[1] - 1
    if count == 0:
        pytest.skip("the prompt begins with its media")
    want = made(adapter, inputs, strategy_of(strategy), {"tensors": inputs})
    cache = beginning(adapter, inputs, count)
    given = inputs if kept > 0 else words_only(inputs)  # the picture is in front of what is left, or in it
    got = made(adapter, given, strategy_of(strategy), {"tensors": inputs}, past_key_values=cache)
    same(got, want)


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("strategy", ALONE)
def test_the_new_ids_alone(name: str, strategy: str) -> None:
    adapter = built(name)
    cache, inputs = turn(adapter, inputs_of(name, adapter))
    past = cache.get_seq_length()
    want = made(adapter, words_only(inputs), strategy_of(strategy), past_key_values=copy.deepcopy(cache))
    short = {"input_ids": inputs["input_ids"][:, past:], "attention_mask": inputs["attention_mask"]}
    got = made(adapter, short, strategy_of(strategy), past_key_values=copy.deepcopy(cache))
    assert torch.equal(got.sequences, want.sequences[:, past:])
    plain = made(adapter, short, past_key_values=cache)
    if strategy == "greedy":
        same(got, plain, 0)


@pytest.mark.parametrize("strategy", [s for s in MORE if s not in ALONE])
def test_methods_that_need_the_whole_prompt_are_refused(strategy: str) -> None:
    adapter = built("llava")
    cache, inputs = turn(adapter, inputs_of("llava", adapter))
    past = cache.get_seq_length()
    short = {"input_ids": inputs["input_ids"][:, past:], "attention_mask": inputs["attention_mask"]}
    for given in (short, words_only(inputs)):
        if given is not short and strategy in ("pai", "m3id"):  # ids are enough for a prompt without the picture
            continue
        with pytest.raises(UnsupportedError, match=r"in the cache|given") as caught:
            made(adapter, given, strategy_of(strategy), past_key_values=copy.deepcopy(cache))
        assert "tensors=" in str(caught.value.hint)
    with pytest.raises(UnsupportedError):  # relevance of a picture that is not at hand
        made(adapter, words_only(inputs), limelight.greedy(), {"details": True}, past_key_values=copy.deepcopy(cache))


def test_positions_of_a_picture_cannot_be_guessed() -> None:
    adapter = built("qwen2_5_vl")
    cache, inputs = turn(adapter, inputs_of("qwen2_5_vl", adapter))
    with pytest.raises(UnsupportedError, match="grid"):
        made(adapter, inputs, limelight.meter(), past_key_values=cache)


@pytest.mark.parametrize("strategy", ["meter", "lime", "lime-cached", "relevance-contrastive", "memvr", "opera"])
def test_a_cache_of_something_else_is_found_out(strategy: str) -> None:
    """The cache of another picture: what reads the prompt anew would not answer for it; the model itself goes on."""
    adapter = built("llava")
    first = inputs_of("llava", adapter)
    cache, inputs = turn(adapter, first)
    other, _ = turn(adapter, {**first, "pixel_values": -first["pixel_values"]})
    asked = words_only(inputs)
    with pytest.raises(UnsupportedError, match="differ"):
        made(adapter, asked, strategy_of(strategy), {"tensors": inputs}, past_key_values=copy.deepcopy(other))
    made(adapter, asked, strategy_of(strategy), {"tensors": inputs}, past_key_values=cache)
    plain = made(adapter, asked, past_key_values=copy.deepcopy(other))
    same(made(adapter, asked, limelight.greedy(), past_key_values=other), plain, 0)


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_a_family_with_bidirectional_prompts_continues_from_the_cache_only(name: str) -> None:
    adapter = built(name)
    cache, inputs = turn(adapter, inputs_of(name, adapter))
    asked = words_only(inputs)
    want = made(adapter, asked, past_key_values=copy.deepcopy(cache))
    same(made(adapter, asked, limelight.greedy(), past_key_values=copy.deepcopy(cache)), want, 0)
    for strategy in ("meter", "lime"):
        with pytest.raises(UnsupportedError, match="differ"):
            made(adapter, asked, strategy_of(strategy), {"tensors": inputs}, past_key_values=copy.deepcopy(cache))


def test_relevance_after_a_cache_is_that_of_the_whole_prompt() -> None:
    for name in NAMES[:3]:
        adapter = built(name)
        first = inputs_of(name, adapter)
        cache, inputs = turn(adapter, first)
        want = made(adapter, inputs, limelight.greedy(), {"tensors": inputs, "details": True})
        turn(adapter, first)
        bound = {"tensors": inputs, "details": True}
        got = made(adapter, words_only(inputs), limelight.greedy(), bound, past_key_values=cache)
        for a, b in zip(got.steps[0], want.steps[0], strict=True):
            torch.testing.assert_close(a.relevance.scores, b.relevance.scores, atol=1e-4, rtol=1e-3)


def test_caches_that_do_not_fit() -> None:
    adapter = built("llava")
    cache, inputs = turn(adapter, inputs_of("llava", adapter))
    past = cache.get_seq_length()
    for count in (past, past - 3):  # nothing left to read
        short = {k: v[:, :count] for k, v in words_only(inputs).items()}
        for strategy in ("greedy", "meter", "lime"):
            with pytest.raises(PromptError, match="no new positions") as caught:
                made(adapter, short, strategy_of(strategy), past_key_values=copy.deepcopy(cache))
            assert caught.value.hint
    wrong = {"input_ids": inputs["input_ids"][:, past:], "attention_mask": inputs["attention_mask"][:, 2:]}
    with pytest.raises(PromptError, match="mask"):
        made(adapter, wrong, limelight.greedy(), past_key_values=copy.deepcopy(cache))
    twice = {k: torch.cat([v, v]) for k, v in words_only(inputs).items()}
    with pytest.raises(PromptError, match="1 rows"):
        made(adapter, twice, limelight.greedy(), past_key_values=copy.deepcopy(cache))
    with pytest.raises(PromptError, match="image"):
        made(adapter, words_only(inputs), limelight.greedy(), past_key_values=beginning(adapter, inputs, 1))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen2_audio", "gemma3"])
@pytest.mark.parametrize("kind", ["static", "sliding", "offloaded", "repeated"])
def test_caches_of_other_kinds(name: str, kind: str) -> None:
    adapter = built(name)
    config = adapter.model.config.get_text_config(decoder=True)
    first = inputs_of(name, adapter, 2 if kind == "repeated" else 1)

    def empty() -> Any:
        if kind == "static":
            return StaticCache(config=config, max_cache_len=64)
        if kind == "offloaded" and torch.cuda.is_available():
            return DynamicCache(config=config, offloading=True)
        return DynamicCache(config=config if kind == "sliding" else None)

    cache, inputs = turn(adapter, first, empty())
    want = made(adapter, words_only(inputs), past_key_values=cache)
    mine, again = turn(adapter, first, empty(), limelight.greedy())
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    same(made(adapter, words_only(inputs), limelight.greedy(), past_key_values=mine), want, 0)
    third = turn(adapter, first, empty())[0]
    metered = made(adapter, words_only(inputs), limelight.meter(), {"tensors": inputs}, past_key_values=third)
    same(metered, want)
    assert metered.past_key_values is third and int(third.get_seq_length()) == metered.sequences.shape[1] - 1


def test_limelight_generate_continues_a_cache() -> None:
    from limelight.types import Prompt

    adapter = fresh("llava")
    cache, inputs = turn(adapter, inputs_of("llava", adapter))
    prompt = Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))
    for name in ("greedy", "meter", "lime"):
        plain = limelight.generate(adapter, None, prompt, strategy=strategy_of(name), max_new_tokens=3)
        mine = copy.deepcopy(cache)
        again = limelight.generate(
            adapter, None, prompt, strategy=strategy_of(name), max_new_tokens=3, past_key_values=mine
        )
        assert again.token_ids == plain.token_ids
        assert mine.get_seq_length() == len(prompt.tokens) + 2
