"""The queue and the worker."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from limelight.errors import ModelError, SettingError
from limelight.server.problems import ApiError, busy
from limelight.server.worker import Failed, FairQueue, Job, Worker


def job(client: str, work: Any = None, emit: Any = None, **more: Any) -> Job:
    return Job(client, work or (lambda _: None), emit or (lambda _: None), **more)


def test_clients_take_turns() -> None:
    queue = FairQueue()
    many, few = [job("many") for _ in range(3)], [job("few") for _ in range(2)]
    for j in (*many, *few):
        queue.put(j)
    assert len(queue) == 5
    assert [queue.get() for _ in range(5)] == [[j] for j in (many[0], few[0], many[1], few[1], many[2])]


def test_who_agrees_goes_together_and_turns_stay_fair() -> None:
    queue = FairQueue()
    a = [job("a", key=k) for k in ("x", "y", "x", "x")]
    b = [job("b", key=k) for k in ("y", "x", None)]
    c = [job("c", key="x", rows=3), job("c", key="x")]
    for j in (*a, *b, *c):
        queue.put(j)
    assert queue.get(5) == [a[0], b[1], c[0]]  # a round: b's x goes along, c's three rows fill the room
    assert queue.get(5) == [b[0], a[1]]  # b's turn now, though an x of b went before
    assert queue.get(5) == [c[1], a[2], a[3]]
    assert queue.get(5) == [b[2]]  # no key: alone
    assert len(queue) == 0
    many, other = [job("a", key="x") for _ in range(5)], job("b", key="z")
    for j in (*many, other):
        queue.put(j)
    assert queue.get(4) == many[:4]
    assert queue.get(4) == [other]
    assert queue.get(4) == [many[4]]
    for _ in range(2):
        queue.put(job("a"))
    assert len(queue.get(8) or []) == 1


def test_disconnected_requests_are_removed() -> None:
    queue = FairQueue()
    first, second = job("a"), job("a")
    queue.put(first)
    queue.put(second)
    queue.discard(first)
    queue.discard(first)
    assert queue.get() == [second]
    queue.discard(second)
    assert len(queue) == 0
    queue.close()
    assert queue.get() is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("secret"), 500),
        (ModelError("secret"), 500),
        (SettingError("lr"), 400),
        (busy("x"), 429),
        (MemoryError(), 500),
    ],
    ids=repr,
)
def test_an_exception_ends_its_job_alone(error: Exception, status: int, caplog: pytest.LogCaptureFixture) -> None:
    worker, events, done = Worker(), [], threading.Event()

    def fail(_: Any) -> None:
        raise error

    worker.start()
    worker.submit(job("a", fail, events.append))
    worker.submit(job("a", lambda _: done.set()))
    assert done.wait(60)
    assert [e.problem.status for e in events if isinstance(e, Failed)] == [status]
    assert "secret" not in str(events[0].problem.payload())
    assert worker.errors == (status == 500)
    assert worker.stop(60)
    assert not worker.alive


def test_a_cancelled_job_never_starts_and_stopping_cancels_the_running_one() -> None:
    worker, ran, started = Worker(), [], threading.Event()

    def long(own: Any) -> None:
        started.set()
        ran.append(own[0].cancelled.wait(60))

    running, waiting = job("a", long), job("a", lambda _: ran.append("no"))
    worker.start()
    worker.submit(running)
    worker.submit(waiting)
    assert started.wait(60)
    worker.cancel(waiting)
    assert worker.stop(60)
    assert ran == [True]


@pytest.mark.parametrize(
    "death", [SystemExit(3), KeyboardInterrupt(), BaseException("secret"), GeneratorExit()], ids=repr
)
def test_a_base_exception_ends_the_worker_and_fails_all_requests(
    death: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    worker, events, gate, told = Worker(), [], threading.Event(), threading.Event()
    worker.on_death = told.set

    def die(_: Any) -> None:
        assert gate.wait(60)
        raise death

    worker.start()
    worker.submit(job("a", die, events.append))
    for client in "aab":
        worker.submit(job(client, emit=events.append))
    gate.set()
    assert told.wait(60)
    assert [e.problem.status for e in events] == [503] * 4
    assert "secret" not in str(events[0].problem.payload())
    assert not worker.alive
    assert len(worker.queue) == 0
    with pytest.raises(ApiError) as caught:
        worker.submit(job("b"))
    assert (caught.value.status, caught.value.code) == (503, "worker_gone")
    assert worker.stop(60)
    assert "the worker has died" in caplog.text
