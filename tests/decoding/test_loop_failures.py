"""Streamers end, models are left as they were, and what cannot work is refused, whatever happens in the loop."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

import limelight
from limelight.decoding.sampler import TokenSampler
from limelight.decoding.strategy import Detail, GenerationContext, StepOutput
from limelight.errors import NotFiniteError, PromptError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter
from limelight.relevance.attribute import attribute
from limelight.types import Step
from tests.decoding.loops import FAMILIES, batch_of, inputs_of, run, strategies
from tests.tiny import built, fresh, llava, snapshot, tokenizer


@strategies
def test_a_text_iterator_streamer_gets_every_word_and_ends(strategy: Any) -> None:
    adapter = fresh("llava")
    plain = run(adapter, strategy)
    words = tokenizer()
    for twice in (False, True):  # bound alone, or passed to generate() too
        streamer = TextIteratorStreamer(words, skip_prompt=True, timeout=120)
        extra = {"streamer": streamer} if twice else {}
        thread = threading.Thread(
            target=run, args=(adapter, strategy), kwargs={"bound": {"streamer": streamer}, **extra}
        )
        thread.start()
        text = "".join(streamer)
        thread.join(200)
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

    def session(self, context: GenerationContext) -> Any:
        inner = limelight.greedy().session(context)

        class Session:
            def next(self, tokens: Tensor | None) -> StepOutput:
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


@strategies
def test_beam_sampling_is_refused(strategy: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        run(built("llava"), strategy, num_beams=3, do_sample=True)
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
    gate = threading.Barrier(2, timeout=60)

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
        thread.join(200)
        assert not thread.is_alive()
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

        def session(self, context: GenerationContext) -> Any:
            class Session:
                def next(self, tokens: Tensor | None) -> StepOutput:
                    return StepOutput(torch.full((1, 128), float("nan")))

            return Session()

    with pytest.raises(NotFiniteError) as caught:
        run(built("llava"), Nan())
    assert caught.value.hint


def test_a_cut_and_a_processor_that_leave_no_token_are_reported() -> None:
    adapter = built("llava", torch.float32)
    fn = limelight.custom_generate(OnlyEnd())
    with pytest.raises(SettingError, match=r"no token is allowed at token 0 of row 0: only-end") as caught:
        adapter.model.generate(
            **inputs_of(adapter), custom_generate=fn, max_new_tokens=4, min_new_tokens=2,
            eos_token_id=2, do_sample=False,
        )  # fmt: skip
    assert "lower beta" in caught.value.hint


class OnlyEnd:
    """Cuts every token but the end of text, which min_new_tokens bars."""

    name = "only-end"

    def settings(self) -> dict[str, Any]:
        return {}

    def session(self, context: GenerationContext) -> Any:
        class Session:
            def next(self, tokens: Tensor | None) -> StepOutput:
                logits = torch.full((context.ids.shape[0], context.adapter.traits.vocab), float("-inf"))
                logits[:, 2] = 1.0
                return StepOutput(logits)

        return Session()


def test_what_a_strategy_knows_becomes_the_step() -> None:
    class Knowing(Broken):
        name = "knowing"

        def session(self, context: GenerationContext) -> Any:
            inner = limelight.greedy().session(context)

            class Session:
                def next(self, tokens: Tensor | None) -> StepOutput:
                    logits = inner.next(tokens).logits
                    detail = Detail(shares={"image": 0.5}, intervened=True, plain=3, losses={"kl": (0.1,)},
                                    candidates=((4, 1.5, 0.5),), flagged=True)  # fmt: skip
                    return StepOutput(logits, (detail,))

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
    sampler = TokenSampler(LogitsProcessorList([InPlace()]), sample=False)
    assert not sampler.scores(torch.zeros(2, 1).long(), logits).any()
    assert torch.equal(logits, before)
    assert torch.equal(TokenSampler(None, sample=False).scores(torch.zeros(2, 1).long(), logits), logits)


@pytest.mark.parametrize("strategy", ["vcd", "relevance-contrastive", "dola", "m3id", "pai", "avisc"])
def test_where_the_cut_leaves_only_barred_tokens_the_unchanged_model_decides(strategy: str) -> None:
    """A cut of 1 leaves the likeliest token alone, and it is barred: the next likeliest follows."""
    adapter = built("llava", torch.float32)
    inputs = inputs_of(adapter)
    first = int(adapter.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
    barred = {"max_new_tokens": 1, "do_sample": False, "bad_words_ids": [[first]]}
    expected = adapter.model.generate(**inputs, **barred)
    fn = limelight.custom_generate(limelight.strategy(strategy, beta=1.0), tensors=inputs)
    assert torch.equal(adapter.model.generate(**inputs, **barred, custom_generate=fn), expected)
