"""Several threads in one model: each gets the answer that it would get alone."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import limelight
from limelight.models.adapter import Adapter
from limelight.models.runtime.locks import lock_of
from limelight.relevance.attachment import attached
from tests.tiny import llava, llava_inputs, snapshot

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {}, "meter": {}, "lime": {"steps": 3, "lr": 1e-2}, "lime-cached": {"lr": 1e-2},
    "relevance-contrastive": {}, "m3id": {"variant": "released"}, "dola": {}, "pai": {}, "avisc": {}, "vcd": {},
    "memvr": {"threshold": 0.0}, "opera": {"beams": 2, "candidates": 2},
    "lrp-beam": {"beams": 2, "length": 2}, "flb": {}, "iat": {}, "vaf": {}, "rudder": {}, "kvsmooth": {}, "vista": {},
    "ilvad": {"tau": 1.0}, "agla": {},
}  # fmt: skip
TOKENS = 4


def answer(model: Any, inputs: dict[str, Tensor], name: str, **more: Any) -> Tensor:
    """Logits of every token."""
    strategy = limelight.strategy(name, **STRATEGIES[name])
    out = model.generate(
        **inputs, custom_generate=limelight.custom_generate(strategy, tensors=inputs, **more), max_new_tokens=TOKENS,
        do_sample=False, return_dict_in_generate=True, output_logits=True, disable_compile=True,
    )  # fmt: skip
    return torch.cat(out.logits)


def together(jobs: list[Callable[[], Any]]) -> None:
    """All jobs at once; the first failure is raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> None:
        try:
            torch.set_num_threads(1)
            start.wait(timeout=60)
            job()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_threads_with_different_strategies_get_their_sequential_answers() -> None:
    """Each thread has a strategy and a picture of its own; in between others wrap the model and attribute."""
    model = llava(torch.float32)
    prompts = [llava_inputs(model, seed) for seed in range(len(STRATEGIES))]
    alone = {n: answer(model, prompts[i], n) for i, n in enumerate(STRATEGIES)}
    relevance = [limelight.attribute(model, p).scores for p in prompts]
    before = snapshot(model)

    def job(index: int, name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(2):
                assert torch.equal(answer(model, prompts[index], name), alone[name]), name
                assert torch.equal(limelight.attribute(model, prompts[index]).scores, relevance[index]), name

        return run

    together([job(i, n) for i, n in enumerate(STRATEGIES)])
    assert snapshot(model) == before


def test_threads_that_share_an_adapter_and_sample() -> None:
    model = llava(torch.float32)
    adapter = Adapter(model)
    inputs = llava_inputs(model)
    prompt = limelight.types.Prompt(inputs, adapter.words(inputs), adapter.spans(inputs))

    def ask(seed: int, name: str) -> tuple[int, ...]:
        return limelight.generate(
            adapter, None, prompt, strategy=limelight.strategy(name, **STRATEGIES[name]), seed=seed, do_sample=True,
            temperature=2.0, max_new_tokens=TOKENS,
        ).token_ids  # fmt: skip

    names = ["greedy", "lime-cached", "lime", "meter"]
    want = {(s, n): ask(s, n) for s, n in enumerate(names)}

    def check(seed: int, name: str) -> None:
        assert ask(seed, name) == want[seed, name]

    together([partial(check, seed, name) for seed, name in want])


def test_answers_advance_in_turns() -> None:
    """The lock is held a token at a time: a thread waits for a token of another, not for its whole answer."""
    model = llava(torch.float32)
    inputs = llava_inputs(model)
    met = threading.Barrier(2)

    def meet(row: int, step: Any) -> None:
        met.wait(timeout=60)  # passes only when both threads are in the middle of their answers

    together([partial(answer, model, inputs, name, on_step=meet) for name in ("lime", "meter")])


def test_others_wait_while_rules_are_attached() -> None:
    model = llava(torch.float32)
    adapter, other = Adapter(model), Adapter(model)
    inputs = llava_inputs(model)
    want = answer(model, inputs, "greedy")
    found: list[Tensor] = []
    with attached(adapter):
        thread = threading.Thread(target=lambda: found.append(answer(model, inputs, "greedy")))
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive(), "a forward ran inside another thread's rules"
        limelight.attribute(other, inputs)  # the thread that holds the model may go on, by another adapter too
    thread.join(timeout=60)
    assert torch.equal(found[0], want)


def test_frozen_weights_stay_frozen_until_their_own_thread_thaws_them() -> None:
    model = llava(torch.float32)
    adapter, other = Adapter(model), Adapter(model)
    weights = list(model.parameters())
    asked = [p.requires_grad for p in weights]
    assert any(asked)
    entered = threading.Event()

    def freeze() -> None:
        with other.frozen():
            entered.set()

    with adapter.frozen():
        thread = threading.Thread(target=freeze)
        thread.start()
        assert not entered.wait(timeout=0.5), "another thread's end of the block would thaw these weights"
        assert not any(p.requires_grad for p in weights)
    thread.join(timeout=60)
    assert entered.is_set()
    assert [p.requires_grad for p in weights] == asked
    with pytest.raises(ZeroDivisionError), adapter.frozen():
        raise ZeroDivisionError
    assert [p.requires_grad for p in weights] == asked


def test_an_exception_gives_the_model_back() -> None:
    model = llava(torch.float32)
    adapter = Adapter(model)
    inputs = llava_inputs(model)
    with pytest.raises(ZeroDivisionError), adapter.exclusive():
        raise ZeroDivisionError
    together([partial(limelight.attribute, model, inputs)])


def test_one_lock_a_model_that_dies_with_it() -> None:
    model, other = llava(torch.float32), llava(torch.float32)
    decoder = model.get_decoder()
    assert lock_of(decoder) is lock_of(decoder)
    assert lock_of(decoder) is not lock_of(other.get_decoder())
    gone = weakref.ref(decoder)
    del model, decoder
    gc.collect()
    assert gone() is None
