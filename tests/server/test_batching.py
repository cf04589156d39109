"""Requests that agree are decoded together, and each gets the answer it would get alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from PIL import Image

import limelight
from limelight.decoding.registry import strategies
from limelight.decoding.strategy import Capabilities, GenerationContext, Session, Strategy, capabilities_of
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.server.answering import Finished, GenerationRequest, TokenEvent, rows_of
from limelight.server.batching import answer, groups
from limelight.server.conversation import Conversation
from limelight.server.limits import Limits
from limelight.server.problems import api_error
from limelight.server.worker import Failed, Job
from tests.server.conftest import MODEL, Gate, Serve, ask, create, until

TOGETHER = [n for n, made in strategies().items() if capabilities_of(made()).batches and n != "aad"]  # aad needs sound
WORDS = ("Is there a cup in the picture?", "There is a dog. Is there a dog in the picture?", "Describe the picture.")
SAMPLED = {"do_sample": True, "temperature": 1.7, "top_p": 0.95, "top_k": 0}


def conversation(words: str, colour: str | None = "white") -> Conversation:
    return Conversation([("user", [*([Image.new("RGB", (112, 112), colour)] if colour else []), words])])


@dataclass
class Heard:
    """A job and what it was told."""

    order: GenerationRequest
    events: list[Any] = field(default_factory=list)
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        self.job = Job("x", lambda _: None, self.events.append, self.order, self.order.key, len(self.order.seeds))

    @property
    def finished(self) -> list[Finished]:
        return sorted((e for e in self.events if isinstance(e, Finished)), key=lambda e: e.index)

    @property
    def text(self) -> str:
        return "".join(e.delta for e in self.events if isinstance(e, (TokenEvent, Finished)))

    @property
    def failed(self) -> list[int]:
        return [e.problem.status for e in self.events if isinstance(e, Failed)]


def work(
    adapter: Adapter, orders: Sequence[GenerationRequest | Heard], batch: int = 8, limits: Limits | None = None
) -> list[Heard]:
    heard = [o if isinstance(o, Heard) else Heard(o) for o in orders]

    def fail(job: Job, error: Exception) -> None:
        job.send(Failed(api_error(error)))
        job.cancelled.set()

    answer([h.job for h in heard], adapter, limits or Limits(), batch, fail)
    return heard


def ids(finished: Finished) -> list[int]:
    return [s.token for s in finished.steps]


@dataclass(frozen=True)
class Counted:
    """A strategy that writes down the size of every batch; broken where it holds more than ``most`` rows."""

    inner: Strategy
    sizes: list[int] = field(default_factory=list)
    most: int = 99
    error: Exception = field(default_factory=lambda: MemoryError("too many"))
    name: str = "greedy"

    @property
    def capabilities(self) -> Capabilities:
        return capabilities_of(self.inner)

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()

    def session(self, context: GenerationContext) -> Session:
        self.sizes.append(len(context.ids))
        if len(context.ids) > self.most:
            raise self.error
        return self.inner.session(context)


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_answers_what_each_gets_alone(adapter: Adapter, name: str, sampling: dict[str, Any]) -> None:
    steps = {"steps": 3} if name == "lime" else {}  # its answers cost a backward pass a step
    orders = [
        GenerationRequest(
            conversation(w, c), limelight.strategy(name, **steps), grounding=name in ("greedy", "vcd"), sampling=sampling,
            seeds=(s if sampling else None,), new_tokens=n,
        )
        for w, c, s, n in zip(WORDS, ("white", "red", "green"), (3, 11, 8), (3, 2, 3) if steps else (4, 5, 3), strict=True)
    ]  # fmt: skip
    assert len({o.key for o in orders}) == 1
    assert orders[0].key is not None
    assert len({len(rows_of(Heard(o).job, adapter, Limits())[0].prompt.tokens) for o in orders}) == 3  # padding
    for order, got in zip(orders, work(adapter, orders), strict=True):
        (want,) = work(adapter, [order])
        assert ids(got.finished[0]) == ids(want.finished[0])
        assert (got.text, got.finished[0].reason) == (want.text, want.finished[0].reason)
        for a, b in zip(got.finished[0].steps, want.finished[0].steps, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)
            assert a.contributions == pytest.approx(b.contributions, abs=1e-3)
            assert (a.intervened, a.plain) == (b.intervened, b.plain)


def test_only_what_was_shown_to_be_apart_shares_a_batch(adapter: Adapter) -> None:
    orders = {n: GenerationRequest(conversation("x"), limelight.strategy(n)) for n in strategies()}
    found_first = {n for n, o in orders.items() if o.key is None}  # they find the whole answer before the first token
    assert found_first == {"lrp-beam", "opera", "reconsider"}
    plain = orders["greedy"]
    lime = limelight.lime
    others = [
        replace(plain, grounding=True),
        replace(plain, sampling=SAMPLED),
        replace(plain, sampling={**SAMPLED, "temperature": 1.0}),
        replace(plain, conversation=conversation("x", None)),
        replace(plain, strategy=lime()),
        replace(plain, strategy=lime(steps=2)),
    ]
    assert len({o.key for o in (plain, *others)}) == 7
    assert replace(plain, page=True).key is None
    assert replace(plain, strategy=limelight.after("</think>", limelight.lime_cached())).key is None
    assert replace(plain, stops=("a",), new_tokens=3, top=2).key == plain.key


def test_words_alone_share_a_batch_too(adapter: Adapter) -> None:
    orders = [GenerationRequest(conversation(w, None), limelight.greedy(), new_tokens=5) for w in WORDS]
    together = work(adapter, orders)
    assert [h.text for h in together] == [work(adapter, [o])[0].text for o in orders]


def test_pictures_of_unequal_number_are_answered_all_the_same(adapter: Adapter) -> None:
    red, green = (Image.new("RGB", (112, 112), c) for c in ("red", "green"))
    orders = [
        GenerationRequest(
            Conversation([("user", [*p, "Is there a cup in the picture?"])]), limelight.greedy(), new_tokens=4
        )
        for p in ([red], [red, green], [green])
    ]
    assert [h.text for h in work(adapter, orders)] == [work(adapter, [o])[0].text for o in orders]


def test_every_row_has_its_own_end(adapter: Adapter) -> None:
    (whole,) = work(
        adapter, [GenerationRequest(conversation("Describe the picture."), limelight.greedy(), new_tokens=12)]
    )
    stop = whole.text[3:7]
    counted = Counted(limelight.greedy())
    orders = [
        GenerationRequest(conversation("Describe the picture."), counted, new_tokens=n, stops=s, top=t)
        for n, s, t in ((2, (), 0), (12, (stop,), 0), (12, (), 3))
    ]
    short, stopped, long = work(adapter, orders)
    assert counted.sizes == [3]
    assert (short.finished[0].new_tokens, short.finished[0].reason) == (2, "length")
    assert (stopped.text, stopped.finished[0].reason) == (whole.text[: whole.text.index(stop)].strip(), "stop")
    assert long.text == whole.text
    assert all(len(e.top) == 3 for e in long.events if isinstance(e, TokenEvent) and e.step)
    assert not any(e.top for e in short.events if isinstance(e, TokenEvent))


def test_who_is_cancelled_leaves_the_others_alone(adapter: Adapter) -> None:
    orders = [GenerationRequest(conversation(w), limelight.greedy(), new_tokens=6) for w in WORDS]
    alone = [work(adapter, [o])[0] for o in orders]
    gone = Heard(orders[1])
    gone.job.emit = lambda event: (gone.events.append(event), gone.job.cancelled.set())  # leaves at the first token
    first, gone, third = work(adapter, [orders[0], gone, orders[2]])
    assert (first.text, third.text) == (alone[0].text, alone[2].text)
    assert len(gone.events) == 1


def test_what_one_request_breaks_is_its_own_affair(adapter: Adapter) -> None:
    good = GenerationRequest(conversation("Describe the picture."), limelight.greedy(), new_tokens=3)
    long = replace(good, conversation=conversation("cup " * 200))
    blank = replace(good, conversation=Conversation([("user", [Image.new("L", (0, 0)), "x"])]))
    first, second, third, fourth = work(adapter, [good, long, blank, good], limits=Limits(prompt_tokens=100))
    assert (second.failed, third.failed) == ([400], [400])
    assert first.text == fourth.text != ""


@pytest.mark.parametrize("error", [MemoryError("too many"), UnsupportedError("no batch")], ids=repr)
def test_a_batch_that_fails_is_tried_one_by_one(
    adapter: Adapter, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted(limelight.greedy(), most=1, error=error)
    orders = [GenerationRequest(conversation(w), counted, new_tokens=3) for w in WORDS]
    heard = work(adapter, orders)
    assert counted.sizes == [3, 1, 1, 1]
    assert all(h.finished and not h.failed for h in heard)
    assert ("one by one" in caplog.text) == isinstance(error, MemoryError)


def test_what_breaks_on_the_way_ends_the_answers_that_have_begun(adapter: Adapter) -> None:
    class Late:
        def __init__(self, context: GenerationContext) -> None:
            self.inner, self.count = limelight.greedy().session(context), 0

        def next(self, tokens: Any) -> Any:
            self.count += 1
            if self.count == 3:
                raise MemoryError
            return self.inner.next(tokens)

    @dataclass(frozen=True)
    class Breaks(Counted):
        def session(self, context: GenerationContext) -> Any:
            self.sizes.append(len(context.ids))
            return Late(context)

    breaks = Breaks(limelight.greedy())
    orders = [GenerationRequest(conversation("Describe the picture."), breaks, new_tokens=n) for n in (2, 9)]
    short, long = work(adapter, orders)
    assert (len(short.finished), short.failed) == (1, [])
    assert (long.finished, long.failed) == ([], [500])
    assert breaks.sizes == [2]


def test_groups_are_bounded(adapter: Adapter) -> None:
    def rows(words: Sequence[str], strategy: str = "greedy") -> list[Any]:
        orders = [GenerationRequest(conversation(w), limelight.strategy(strategy), new_tokens=4) for w in words]
        return [row for o in orders for row in rows_of(Heard(o).job, adapter, Limits())]

    five = rows([WORDS[0]] * 5)
    width = len(five[0].prompt.tokens) + 4
    assert [len(g) for g in groups(five, 2, 10**6)] == [2, 2, 1]
    assert [len(g) for g in groups(five, 8, 3 * width)] == [3, 2]
    assert [len(g) for g in groups(five, 8, 1)] == [1] * 5
    assert [len(g) for g in groups(rows([WORDS[0]] * 3, "opera"), 8, 10**6)] == [1, 1, 1]
    assert not list(groups([], 8, 1))


def test_several_answers_have_seeds_in_a_row(adapter: Adapter) -> None:
    counted = Counted(limelight.greedy())
    order = GenerationRequest(
        conversation("Describe the picture."), counted, sampling=SAMPLED, seeds=(5, 6, 7), new_tokens=8
    )
    (together,) = work(adapter, [order])
    assert (counted.sizes, [f.of for f in together.finished]) == ([3], [3, 3, 3])
    for finished in together.finished:
        (alone,) = work(adapter, [replace(order, seeds=(finished.seed,))])
        assert ids(alone.finished[0]) == ids(finished)
    counted.sizes.clear()
    (one_by_one,) = work(adapter, [order], batch=1)
    assert counted.sizes == [1, 1, 1]
    assert [ids(f) for f in one_by_one.finished] == [ids(f) for f in together.finished]


def test_n_answers_by_the_official_client(serve: Serve) -> None:
    with serve() as running:
        client = running.openai()
        asked: dict[str, Any] = {"temperature": 1.7, "seed": 4, "max_tokens": 6, "logprobs": True}
        got = create(client, n=3, extra_body={"limelight": {"grounding": True}}, **asked)
        assert [c.index for c in got.choices] == [0, 1, 2]
        alone = [create(client, **{**asked, "seed": 4 + k}) for k in range(3)]
        assert [c.message.content for c in got.choices] == [a.choices[0].message.content for a in alone]
        assert len({c.message.content for c in got.choices}) > 1
        assert got.usage.prompt_tokens == alone[0].usage.prompt_tokens
        assert got.usage.completion_tokens == sum(a.usage.completion_tokens for a in alone)
        assert [a["seed"] for a in got.limelight["answers"]] == [4, 5, 6]
        for told_, choice in zip(got.limelight["answers"], got.choices, strict=True):
            assert [t["token"] for t in told_["tokens"]] == [x.token for x in choice.logprobs.content]
        streamed: dict[int, str] = defaultdict(str)
        reasons: dict[int, str] = {}
        for chunk in create(client, n=3, stream=True, stream_options={"include_usage": True}, **asked):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
                reasons |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
        assert [streamed[k] for k in range(3)] == [c.message.content for c in got.choices]
        assert [reasons[k] for k in range(3)] == [c.finish_reason for c in got.choices]
        assert chunk.usage.completion_tokens == got.usage.completion_tokens
        for body in ({"n": 2}, {"n": 9, "temperature": 1}, {"n": 0}, {"n": "2x"}):
            refused = running.post({"model": MODEL, "messages": ask(), "max_tokens": 2, **body})
            assert (refused.status_code, refused.json()["error"]["param"]) in ((400, "n"), (400, None))


def test_a_short_answer_does_not_wait_for_a_long_one_and_who_leaves_frees_its_row(serve: Serve) -> None:
    gate = Gate(together=True)
    body = {"model": MODEL, "messages": ask()}
    with serve(strategy=gate) as running, ThreadPoolExecutor(4) as pool:
        first = pool.submit(running.post, {**body, "max_tokens": 1})  # holds the worker, so that the rest gathers
        until(lambda: running.chat.worker.current)
        short = pool.submit(running.post, {**body, "max_tokens": 2})

        def leave() -> None:
            with running.openai() as client:
                stream = create(client, max_tokens=900, stream=True)
                next(iter(stream))
                stream.close()

        leaving = pool.submit(leave)
        long = pool.submit(running.post, {**body, "max_tokens": 5})
        until(lambda: len(running.chat.worker.queue) == 3)
        gate.open(1)
        assert first.result(60).status_code == 200
        until(lambda: len(running.chat.worker.current) == 3)
        gate.open(2)
        assert short.result(60).json()["usage"]["completion_tokens"] == 2  # while the others are at it
        leaving.result(60)
        until(lambda: running.chat.admission.inside.total() == 1)
        assert running.chat.worker.current
        gate.open()
        assert long.result(60).json()["usage"]["completion_tokens"] == 5
        until(lambda: not running.chat.worker.current)
        assert gate.tokens <= 7  # not the 900 of the client that left
        assert running.metric('limelight_batch_answers_bucket{le="4.0"}') == 2
        assert running.metric("limelight_batch_answers_sum") == 4


def test_a_row_whose_time_is_up_leaves_the_others_alone(serve: Serve) -> None:
    gate = Gate(together=True)
    with serve(strategy=gate) as running, ThreadPoolExecutor(3) as pool:
        body = {"model": MODEL, "messages": ask(), "max_tokens": 3}
        first = pool.submit(running.post, {**body, "max_tokens": 1})
        until(lambda: running.chat.worker.current)
        late = pool.submit(running.post, body)
        until(lambda: len(running.chat.worker.queue) == 1)
        running.give(5)  # what this test has for the next lines, until the batch has begun
        early = pool.submit(running.post, body)
        until(lambda: len(running.chat.worker.queue) == 2)
        gate.open(2)
        assert first.result(60).status_code == 200
        until(lambda: len(running.chat.worker.current) == 2)
        assert early.result(60).status_code == 504
        gate.open()
        assert late.result(60).status_code == 200
