"""The transformers way: everything model.generate() offers, through custom_generate."""

from __future__ import annotations

import threading
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
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

import limelight
from limelight.decoding.loop import GroundedOutput, custom_generate
from limelight.decoding.strategy import Chooser, Detail, Outlook, Run
from limelight.errors import NotFiniteError, PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.types import Step
from tests.tiny import built, fresh, llava, llava_inputs, snapshot, tokenizer, vision_processor
from tests.zoo import ZOO

FAMILIES = ("llava", "qwen2_5_vl", "qwen2_audio", "gemma3", "paligemma2")
STRATEGIES: dict[str, Any] = {
    "greedy": limelight.greedy(), "lime": limelight.lime(steps=3, lr=1e-3), "one step": limelight.lime(steps=1)
}  # fmt: skip
strategies = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def inputs_of(adapter: Adapter, name: str = "llava") -> dict[str, Tensor]:
    return ZOO[name].inputs(adapter.model)


def batch_of(adapter: Adapter, name: str = "llava") -> dict[str, Tensor]:
    batch = ZOO[name].batch
    assert batch is not None
    return batch(adapter.model)


def run(adapter: Adapter, strategy: Any, inputs: Any = None, *, bound: Any = None, **kwargs: Any) -> Any:
    settings = {"max_new_tokens": 4, "do_sample": False, **kwargs}
    inputs = inputs_of(adapter) if inputs is None else inputs
    return adapter.model.generate(**inputs, custom_generate=custom_generate(strategy, **(bound or {})), **settings)


def eos_of(adapter: Adapter, inputs: dict[str, Tensor], step: int = 1, row: int = 0) -> int:
    """The token that greedy decoding emits at a step: as EOS it ends the row there."""
    out = adapter.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return int(out[row, inputs["input_ids"].shape[1] + step])


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


@strategies
def test_a_text_iterator_streamer_gets_every_word_and_ends(strategy: Any) -> None:
    adapter = fresh("llava")
    plain = run(adapter, strategy)
    words = tokenizer()
    for twice in (False, True):  # bound alone, or passed to generate() too
        streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=30)
        extra = {"streamer": streamer} if twice else {}
        thread = threading.Thread(
            target=run, args=(adapter, strategy), kwargs={"bound": {"streamer": streamer}, **extra}
        )
        thread.start()
        text = "".join(streamer)
        thread.join()
        assert text == words.decode(plain[0, -4:])
        assert streamer.text_queue.empty()


class Sink(BaseStreamer):
    def __init__(self) -> None:
        self.got: list[list[int]] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        self.got.append(value.flatten().tolist())

    def end(self) -> None:
        self.ends += 1


class Broken:
    """Fails at its second token."""

    name = "broken"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, run: Run) -> Any:
        inner = limelight.greedy().session(run)

        class Session:
            def next(self, tokens: Tensor | None) -> Outlook:
                if tokens is not None:
                    raise ZeroDivisionError
                return inner.next(tokens)

        return Session()


def test_a_streamer_ends_when_decoding_fails() -> None:
    adapter = fresh("llava")
    sink = Sink()
    with pytest.raises(ZeroDivisionError):
        run(adapter, Broken(), bound={"streamer": sink})
    assert sink.ends == 1
    assert len(sink.got) == 1
    before = Sink()
    with pytest.raises(UnsupportedError):  # refused before the first token
        run(adapter, limelight.greedy(), bound={"streamer": before}, num_beams=2)
    assert before.ends == 1
    iterator = TextIteratorStreamer(tokenizer(), skip_prompt=True, timeout=10)
    with pytest.raises(ZeroDivisionError):
        run(adapter, Broken(), bound={"streamer": iterator})
    assert "".join(iterator) == tokenizer().decode([sink.got[0][0]])
    refused = TextStreamer(tokenizer())
    with pytest.raises(ValueError, match="batch size 1"):
        run(adapter, limelight.greedy(), batch_of(adapter), bound={"streamer": refused})


def test_steps_are_handed_over_as_they_come() -> None:
    adapter = built("llava")
    batch = batch_of(adapter)
    heard: list[tuple[int, int]] = []

    def listen(row: int, step: Step) -> None:
        heard.append((row, step.token))

    out = run(adapter, limelight.greedy(), batch, bound={"on_step": listen})
    length = batch["input_ids"].shape[1]
    assert heard == [(row, int(out[row, length + i])) for i in range(4) for row in (0, 1)]


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"num_beams": 3, "do_sample": True}], ids=str)
@strategies
def test_beams_are_refused(strategy: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        run(built("llava"), strategy, **setting)
    assert "num_beams" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_outputs_that_would_be_missing_are_refused(name: str) -> None:
    adapter = built("llava")
    with pytest.raises(UnsupportedError) as caught:
        run(adapter, limelight.greedy(), return_dict_in_generate=True, **{name: True})
    assert name in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_the_callers_mode(name: str, mode: Any) -> None:
    adapter = built(name)
    strategy = limelight.lime(steps=3, lr=1e-3)
    want = run(adapter, strategy, inputs_of(adapter, name))
    with mode():
        got = run(adapter, strategy, inputs_of(adapter, name), bound={"details": True}, return_dict_in_generate=True)
    assert torch.equal(got.sequences, want)
    assert all(s.relevance is not None for s in got.steps[0])


@strategies
def test_the_model_is_left_as_it_was_also_after_an_error(strategy: Any) -> None:
    adapter = fresh("llava")
    run(adapter, strategy)
    before = snapshot(adapter.model)
    run(adapter, strategy, bound={"details": True})
    assert snapshot(adapter.model) == before

    class Bad(LogitsProcessor):
        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            if ids.shape[1] > 24:
                raise ZeroDivisionError
            return scores

    with pytest.raises(ZeroDivisionError):
        run(adapter, strategy, logits_processor=LogitsProcessorList([Bad()]))
    assert snapshot(adapter.model) == before

    def stop(row: int, step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(adapter, strategy, bound={"on_step": stop})
    assert snapshot(adapter.model) == before


def test_two_threads_with_two_models_and_strategies_do_not_mix() -> None:
    jobs = [("llava", limelight.lime(steps=3, lr=1e-2)), ("qwen2_5_vl", limelight.greedy())]
    adapters = {name: fresh(name) for name, _ in jobs}
    want = {name: run(adapters[name], s, inputs_of(adapters[name], name)) for name, s in jobs}
    wrong: list[Any] = []
    gate = threading.Barrier(2)

    def work(name: str, strategy: Any) -> None:
        try:
            gate.wait()
            for _ in range(4):
                if not torch.equal(run(adapters[name], strategy, inputs_of(adapters[name], name)), want[name]):
                    wrong.append(name)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_training_mode_is_refused() -> None:
    adapter = fresh("llava")
    adapter.model.train()
    with pytest.raises(UnsupportedError) as caught:
        run(adapter, limelight.greedy())
    assert caught.value.hint


def test_a_mask_of_the_callers_own() -> None:
    adapter = Adapter(llava())
    ids = torch.tensor([[1, 31, 32, 41, 42]])
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(PromptError):
        run(adapter, limelight.lime(steps=2), text)
    own = torch.tensor([[0, 3, 3, 0, 0]])
    out = run(
        adapter, limelight.lime(steps=2), text, bound={"modality_ids": own, "details": True}, num_return_sequences=2,
        do_sample=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert set(out.steps[1][0].shares) == {"text", "audio"}
    with pytest.raises(PromptError) as caught:
        run(adapter, limelight.greedy(), text, bound={"modality_ids": own[:, :3]})
    assert caught.value.hint


def test_a_missing_mm_token_type_ids_is_made_up_for_or_refused() -> None:
    """Qwen2.5-VL without it would silently take the positions of plain text: logits off by 3 on this model."""
    adapter = built("qwen2_5_vl")
    inputs = inputs_of(adapter, "qwen2_5_vl")
    bare = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    for strategy in (limelight.greedy(), limelight.lime(steps=1)):
        with pytest.raises(PromptError) as caught:  # generate() has counted positions before it hands over
            run(adapter, strategy, bare)
        assert "mm_token_type_ids" in str(caught.value)
        assert caught.value.hint
    assert torch.equal(attribute(adapter, bare).scores, attribute(adapter, inputs).scores)


def test_nan_logits_of_a_strategy_raise() -> None:
    class Nan:
        name = "nan"

        def settings(self) -> dict[str, Any]:
            return {}

        def session(self, run: Run) -> Any:
            class Session:
                def next(self, tokens: Tensor | None) -> Outlook:
                    return Outlook(torch.full((1, 128), float("nan")))

            return Session()

    with pytest.raises(NotFiniteError) as caught:
        run(built("llava"), Nan())
    assert caught.value.hint


def test_what_a_strategy_knows_becomes_the_step() -> None:
    class Knowing(Broken):
        name = "knowing"

        def session(self, run: Run) -> Any:
            inner = limelight.greedy().session(run)

            class Session:
                def next(self, tokens: Tensor | None) -> Outlook:
                    logits = inner.next(tokens).logits
                    detail = Detail(shares={"image": 0.5}, intervened=True, plain=3, losses={"kl": (0.1,)},
                                    candidates=((4, 1.5, 0.5),), flagged=True)  # fmt: skip
                    return Outlook(logits, (detail,))

            return Session()

    out = run(built("llava"), Knowing(), return_dict_in_generate=True, output_scores=True)
    step = out.steps[0][0]
    assert (step.shares, step.intervened, step.plain, step.flagged) == ({"image": 0.5}, True, 3, True)
    assert step.losses == {"kl": (0.1,)}
    assert step.candidates == ((4, "<4>", 1.5, 0.5),)
    want = torch.log_softmax(out.scores[0][0].double(), -1)[step.token]
    assert step.logprob == pytest.approx(float(want), abs=1e-9)


def test_a_chooser_leaves_the_logits_alone() -> None:
    class InPlace(LogitsProcessor):
        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            return scores.zero_()

    logits = torch.randn(2, 5)
    before = logits.clone()
    chooser = Chooser(LogitsProcessorList([InPlace()]), sample=False)
    assert not chooser.scores(torch.zeros(2, 1).long(), logits).any()
    assert torch.equal(logits, before)
    assert torch.equal(Chooser(None, sample=False).scores(torch.zeros(2, 1).long(), logits), logits)
