"""The worker thread that owns the model. Requests are queued per client, served round-robin, and dropped on disconnect.

Jobs with the same batching key (``Job.key``) are handed to the worker together.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from limelight.server.problems import ApiError, api_error, gone

log = logging.getLogger("limelight.server")


@dataclass(frozen=True)
class Failed:
    """Event: the request failed."""

    problem: ApiError


@dataclass(eq=False)
class Job:
    """A request submitted to the worker.

    ``work(jobs)`` runs in the worker's thread, for this job and others with the same ``key``, and calls each job's
    ``send`` with events; it checks ``cancelled`` between tokens.

    Attributes:
        request: the input of ``work`` for this job.
        key: jobs with equal keys may be batched; None: alone.
        rows: number of answers, which is the number of rows it takes in a batch.
        begun: whether an event has been sent.
    """

    client: str
    work: Callable[[Sequence[Job]], None]
    emit: Callable[[Any], None]
    request: Any = None
    key: Hashable | None = None
    rows: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False

    def send(self, event: Any) -> None:
        """Pass on an event, unless the job is cancelled."""
        if not self.cancelled.is_set():
            self.begun = True
            self.emit(event)


class FairQueue:
    """A queue that is first in, first out within a client, and round-robin across clients."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._change = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        with self._change:
            self._waiting.setdefault(job.client, deque()).append(job)
            self._change.notify()

    def get(self, room: int = 1) -> list[Job] | None:
        """Return the next job and queued ones that may be batched with it, up to ``room`` answers.

        Blocks until there is a job; None when closed. Batched jobs do not change the order of turns, so that a job that
        cannot be batched never waits longer than its turn.
        """
        with self._change:
            while not self._waiting and not self._closed:
                self._change.wait()
            if self._closed:
                return None
            client, jobs = next(iter(self._waiting.items()))
            job = jobs.popleft()
            del self._waiting[client]
            if jobs:
                self._waiting[client] = jobs  # to the end: other clients first
            return [job, *self._companions(job, room - job.rows)]

    def _companions(self, first: Job, room: int) -> list[Job]:
        """Take jobs with the same key, one per client and round."""
        found: list[Job] = []
        rest = None if first.key is not None else 0
        while room > 0 and rest != len(found):
            rest = len(found)
            for client, jobs in list(self._waiting.items()):
                job = next((j for j in jobs if j.key == first.key and j.rows <= room), None)
                if job is None:
                    continue
                jobs.remove(job)
                if not jobs:
                    del self._waiting[client]
                found.append(job)
                room -= job.rows
        return found

    def discard(self, job: Job) -> None:
        """Remove a job if it is still queued."""
        with self._change:
            jobs = self._waiting.get(job.client)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._waiting[job.client]

    def drain(self) -> list[Job]:
        """Remove and return all queued jobs."""
        with self._change:
            found = [job for waiting in self._waiting.values() for job in waiting]
            self._waiting.clear()
            return found

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._waiting.clear()
            self._change.notify_all()

    def __len__(self) -> int:
        with self._change:
            return sum(map(len, self._waiting.values()))


class Worker:
    """Runs jobs in a dedicated thread, up to ``batch`` answers together.

    An Exception fails its jobs, not the worker. Any other BaseException (SystemExit, KeyboardInterrupt) ends the worker:
    all jobs fail immediately with 503, no new ones are accepted, and ``on_death`` is called, so that the process can exit.
    """

    def __init__(self, batch: int = 1) -> None:
        self.queue = FairQueue()
        self.batch = batch
        self.current: Sequence[Job] = ()
        self.errors = 0
        self.dead = False
        self.on_death: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name="limelight-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self.dead

    def check(self) -> None:
        """Raises ApiError 503 when the worker has died."""
        if self.dead:
            raise gone()

    def submit(self, job: Job) -> None:
        """Raises ApiError 503 when the worker has died."""
        self.check()
        self.queue.put(job)
        if self.dead:  # it died in the meantime
            for late in self.queue.drain():
                late.send(Failed(gone()))

    def cancel(self, job: Job) -> None:
        """Cancel a job: its answer is no longer needed."""
        job.cancelled.set()
        self.queue.discard(job)

    def stop(self, seconds: float) -> bool:
        """Stop after the current token; return whether the thread has ended."""
        self.queue.close()
        for job in self.current:
            job.cancelled.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def fail(self, job: Job, error: Exception) -> None:
        """Fail a job; errors that the client did not cause are logged."""
        problem = api_error(error)
        if problem.status >= 500 and not isinstance(error, ApiError):
            self.errors += 1
            log.error("a request failed", exc_info=error)
        job.send(Failed(problem))
        job.cancelled.set()

    def _run(self) -> None:
        try:
            while (jobs := self.queue.get(self.batch)) is not None:
                self.current = jobs = [j for j in jobs if not j.cancelled.is_set()]
                try:
                    if jobs:
                        jobs[0].work(jobs)
                except Exception as error:  # noqa: BLE001  # the worker must survive any error of a request
                    for job in jobs:
                        self.fail(job, error)
                self.current = ()
        except BaseException as error:  # noqa: BLE001  # it would be lost in a thread
            self._die(error)

    def _die(self, error: BaseException) -> None:
        self.dead = True
        log.critical("the worker has died, every request gets 503", exc_info=error)
        for job in (*self.current, *self.queue.drain()):
            job.send(Failed(gone()))
            job.cancelled.set()
        if self.on_death is not None:
            self.on_death()
