"""The line and the worker."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from limelight.errors import ModelError, SettingError
from limelight.server.problems import busy
from limelight.server.worker import Failed, FairQueue, Job, Worker


def job(client: str, work: Any = None, emit: Any = None) -> Job:
    return Job(client, work or (lambda _: None), emit or (lambda _: None))


def test_clients_take_turns() -> None:
    queue = FairQueue()
    many, few = [job("many") for _ in range(3)], [job("few") for _ in range(2)]
    for j in (*many, *few):
        queue.put(j)
    assert len(queue) == 5
    assert [queue.get() for _ in range(5)] == [many[0], few[0], many[1], few[1], many[2]]


def test_who_leaves_is_forgotten() -> None:
    queue = FairQueue()
    first, second = job("a"), job("a")
    queue.put(first)
    queue.put(second)
    queue.discard(first)
    queue.discard(first)
    assert queue.get() is second
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

    def fail(_: Job) -> None:
        raise error

    worker.start()
    worker.submit(job("a", fail, events.append))
    worker.submit(job("a", lambda _: done.set()))
    assert done.wait(5)
    assert [e.problem.status for e in events if isinstance(e, Failed)] == [status]
    assert "secret" not in str(events[0].problem.payload())
    assert worker.errors == (status == 500)
    assert worker.stop(5)
    assert not worker.alive


def test_a_cancelled_job_never_starts_and_stopping_cancels_the_running_one() -> None:
    worker, ran, started = Worker(), [], threading.Event()

    def long(own: Job) -> None:
        started.set()
        ran.append(own.cancelled.wait(5))

    running, waiting = job("a", long), job("a", lambda _: ran.append("no"))
    worker.start()
    worker.submit(running)
    worker.submit(waiting)
    assert started.wait(5)
    worker.cancel(waiting)
    assert worker.stop(5)
    assert ran == [True]
