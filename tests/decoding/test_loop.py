"""The transformers way: everything model.generate() offers, through custom_generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

import limelight
from limelight.decoding.loop import GroundedOutput, custom_generate
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from tests.decoding.loops import FAMILIES, STRATEGIES, batch_of, inputs_of, run, strategies
from tests.tiny import built, fresh, llava, llava_inputs, tokenizer, vision_processor

PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition penalty": {"repetition_penalty": 1.7},
    "no repeat ngram": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[i] for i in range(3, 60)]},
    "suppressed": {"suppress_tokens": list(range(64))},
    "forced last": {"forced_eos_token_id": 9},
    "bias": {"sequence_bias": [[[11], 30.0]]},
    "min length": {"min_new_tokens": 3, "eos_token_id": 66},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_decoding_gives_generates_own_ids_scores_and_logits(name: str) -> None:
    adapter = built(name)
    keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    want = adapter.model.generate(**inputs_of(adapter, name), max_new_tokens=4, do_sample=False, **keep)
    got = run(adapter, limelight.greedy(), inputs_of(adapter, name), **keep)
    assert isinstance(got, GroundedOutput)
    assert torch.equal(got.sequences, want.sequences)
    assert len(got.scores) == len(got.logits) == 4
    for ours, theirs in ((got.scores, want.scores), (got.logits, want.logits)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [s.token for s in got.steps[0]] == want.sequences[0, -4:].tolist()


@pytest.mark.parametrize("settings", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("strategy", ["greedy", "one step"])
def test_logits_processors_act_once_as_in_generate(settings: dict[str, Any], strategy: str) -> None:
    adapter = built("llava")
    keep = {"return_dict_in_generate": True, "output_scores": True}
    want = adapter.model.generate(**inputs_of(adapter), max_new_tokens=4, do_sample=False, **keep, **settings)
    got = run(adapter, STRATEGIES[strategy], **keep, **settings)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.scores, want.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_repetition_penalty_does_not_reach_the_raw_logits_of_lime() -> None:
    """The authors' code applies it in place, twice; here the logits that leave the method are the model's."""
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    keep = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 2.0}
    out = run(adapter, limelight.lime(steps=1), inputs, **keep)
    with torch.no_grad():
        raw = adapter.model(**inputs).logits[0, -1]
    torch.testing.assert_close(out.logits[0][0], raw, atol=1e-5, rtol=0)
    seen = inputs["input_ids"][0].unique()
    want = raw.clone()
    want[seen] = torch.where(raw[seen] < 0, raw[seen] * 2, raw[seen] / 2)
    torch.testing.assert_close(out.scores[0][0], want, atol=1e-5, rtol=0)


def test_a_processor_of_the_callers_own_chooses_limes_target() -> None:
    calls: list[int] = []

    class Only(LogitsProcessor):
        stateless = True

        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            calls.append(ids.shape[1])
            out = torch.full_like(scores, float("-inf"))
            out[:, 77] = scores[:, 77]
            return out

    adapter = built("llava")
    processors = LogitsProcessorList([Only()])
    out = run(
        adapter,
        limelight.lime(steps=3),
        bound={"details": True},
        logits_processor=processors,
        return_dict_in_generate=True,
    )
    assert out.sequences[0, -4:].tolist() == [77] * 4
    assert all(s.relevance.target == 77 for s in out.steps[0])
    assert len(calls) == 4 * 3  # the target of each update, and the token


@strategies
def test_a_generation_config_object(strategy: Any) -> None:
    adapter = built("llava")
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, repetition_penalty=1.5)
    out = adapter.model.generate(
        **inputs_of(adapter), generation_config=config, custom_generate=custom_generate(strategy)
    )
    assert out.shape[1] == inputs_of(adapter)["input_ids"].shape[1] + 3
    if strategy.name == "greedy":
        assert torch.equal(out, adapter.model.generate(**inputs_of(adapter), generation_config=config))


@strategies
def test_eos_ends_a_row_and_pads_the_rest_of_the_batch(strategy: Any) -> None:
    adapter = built("llava")
    batch = batch_of(adapter)
    plain = run(adapter, strategy, batch)
    length = batch["input_ids"].shape[1]
    eos = int(plain[0, length + 1])
    assert eos not in plain[1, length:].tolist()
    got = run(adapter, strategy, batch, eos_token_id=eos, pad_token_id=0, return_dict_in_generate=True)
    assert got.sequences[0, length:].tolist() == [*plain[0, length : length + 2].tolist(), 0, 0]
    assert got.sequences[1].tolist() == plain[1].tolist()
    assert [len(s) for s in got.steps] == [2, 4]
    several = run(adapter, strategy, batch, eos_token_id=[3, eos], pad_token_id=0)
    assert torch.equal(several, got.sequences)


@strategies
def test_decoding_stops_when_every_row_has(strategy: Any) -> None:
    adapter = built("llava")
    out = run(adapter, strategy)
    eos = int(out[0, -3])
    short = run(adapter, strategy, eos_token_id=eos, pad_token_id=0)
    assert torch.equal(short, out[:, :-2])


@strategies
def test_stop_strings(strategy: Any) -> None:
    adapter = fresh("llava")
    plain = run(adapter, strategy)
    words = tokenizer()
    second = words.decode([int(plain[0, -3])])
    processor = vision_processor()
    for stop in (second, [second, "nothing"]):
        got = run(adapter, strategy, bound={"processor": processor, "stop_strings": stop})
        assert torch.equal(got, plain[:, :-2])
    with pytest.raises(SettingError) as caught:
        run(adapter, strategy, bound={"stop_strings": "stop"})
    assert caught.value.hint


def test_stop_strings_equal_those_of_generate() -> None:
    adapter = fresh("llava")
    plain = adapter.model.generate(**inputs_of(adapter), max_new_tokens=4, do_sample=False)
    stop = tokenizer().decode([int(plain[0, -2])])
    want = adapter.model.generate(
        **inputs_of(adapter), max_new_tokens=4, do_sample=False, stop_strings=stop, tokenizer=tokenizer()
    )
    got = run(adapter, limelight.greedy(), bound={"processor": vision_processor(), "stop_strings": stop})
    assert torch.equal(got, want)


@strategies
def test_stopping_criteria_see_ids_and_scores(strategy: Any) -> None:
    seen: list[Any] = []

    class After(StoppingCriteria):
        def __call__(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            seen.append(scores)
            return torch.full((ids.shape[0],), ids.shape[1] >= 26, dtype=torch.bool)

    adapter = built("llava")
    out = run(adapter, strategy, stopping_criteria=StoppingCriteriaList([After()]))
    assert out.shape[1] == 26
    assert seen[-1] is None
    run(
        adapter, strategy, stopping_criteria=StoppingCriteriaList([After()]), return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    assert len(seen[-1]) == 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.8}, {"repetition_penalty": 1.3}], ids=str
)
def test_sampling_draws_exactly_the_tokens_of_generate(name: str, settings: dict[str, Any]) -> None:
    adapter = built(name)
    for batch in (inputs_of(adapter, name), batch_of(adapter, name)):
        torch.manual_seed(11)
        want = adapter.model.generate(**batch, max_new_tokens=4, do_sample=True, **settings)
        torch.manual_seed(11)
        got = run(adapter, limelight.greedy(), batch, do_sample=True, **settings)
        assert torch.equal(got, want)


@strategies
def test_a_seed_makes_rows_independent_of_one_another_and_of_the_global_state(strategy: Any) -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    twice = {k: torch.cat([v, v]) for k, v in inputs.items()}
    settings = {"do_sample": True, "temperature": 2.0}
    torch.manual_seed(0)
    first = run(adapter, strategy, inputs, bound={"seed": 5}, **settings)
    torch.manual_seed(1)
    again = run(adapter, strategy, inputs, bound={"seed": 5}, **settings)
    other = run(adapter, strategy, inputs, bound={"seed": 6}, **settings)
    both = run(adapter, strategy, twice, bound={"seed": 5}, **settings)
    listed = run(adapter, strategy, twice, bound={"seed": [6, 5]}, **settings)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(both, torch.cat([first, other]))
    assert torch.equal(listed, torch.cat([other, first]))


def test_one_seed_a_row() -> None:
    with pytest.raises(SettingError) as caught:
        run(built("llava"), limelight.greedy(), bound={"seed": [1, 2, 3]}, do_sample=True)
    assert caught.value.hint


@strategies
def test_several_answers_to_one_prompt(strategy: Any) -> None:
    adapter = Adapter(llava())
    inputs = llava_inputs(adapter.model)
    spans = [adapter.spans(inputs)]
    out = run(
        adapter, strategy, inputs, bound={"seed": 3, "details": True, "spans": spans}, num_return_sequences=3,
        do_sample=True, temperature=2.0, return_dict_in_generate=True,
    )  # fmt: skip
    assert out.sequences.shape == (3, 26)
    assert len({tuple(row) for row in out.sequences.tolist()}) > 1
    for row in range(3):
        assert [s.token for s in out.steps[row]] == out.sequences[row, -4:].tolist()
        assert all(s.relevance.target == s.token for s in out.steps[row])
        assert out.steps[row][0].relevance.spans_of("image")[0].grid == (4, 4)


def test_spans_must_fit_the_batch() -> None:
    adapter = built("llava")
    spans = [adapter.spans(inputs_of(adapter))] * 2
    with pytest.raises(SettingError) as caught:
        run(adapter, limelight.greedy(), bound={"spans": spans * 2}, inputs=batch_of(adapter), num_return_sequences=1)
    assert caught.value.hint
