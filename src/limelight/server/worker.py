"""One thread owns the model. Requests wait in a queue per client; clients take turns, and who leaves is forgotten.

Jobs that agree in everything a batch shares (``Job.key``) are handed to the worker together.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from limelight.server.problems import ApiError, gone, told

log = logging.getLogger("limelight.server")


@dataclass(frozen=True)
class Failed:
    """The last event of a request that has no answer."""

    problem: ApiError


@dataclass(eq=False)
class Job:
    """A request on its way through the worker.

    ``work(jobs)`` runs in the worker's thread, for this job and for others of an equal ``key``, and calls ``tell`` of each
    with events; it looks at ``cancelled`` between tokens.

    Attributes:
        request: what ``work`` is to do for this job.
        key: jobs of an equal key may be worked on together; None: alone.
        rows: how many answers it wants, which is the room it takes in a batch.
        begun: whether it has been told anything.
    """

    client: str
    work: Callable[[Sequence[Job]], None]
    emit: Callable[[Any], None]
    request: Any = None
    key: Hashable | None = None
    rows: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: bool = False

    def tell(self, event: Any) -> None:
        """Pass an event on, unless nobody waits for it any more."""
        if not self.cancelled.is_set():
            self.begun = True
            self.emit(event)


class FairQueue:
    """First come, first served within a client; clients take turns."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._change = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        with self._change:
            self._waiting.setdefault(job.client, deque()).append(job)
            self._change.notify()

    def get(self, room: int = 1) -> list[Job] | None:
        """The job whose turn it is, and waiting ones that may go with it, ``room`` answers in all.

        Waits for a job; None when closed. Whose turn is next does not depend on who went along, so that a job that goes
        with no other waits for its turn and no longer.
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
                self._waiting[client] = jobs  # to the end: others first
            return [job, *self._companions(job, room - job.rows)]

    def _companions(self, first: Job, room: int) -> list[Job]:
        """Round after round one job of each client."""
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
        """Forget a job that still waits; nothing when it does not."""
        with self._change:
            jobs = self._waiting.get(job.client)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._waiting[job.client]

    def drain(self) -> list[Job]:
        """All jobs that wait; they are forgotten."""
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
    """Runs jobs in a thread of its own, up to ``batch`` answers together.

    An exception ends its jobs, not the worker. What is no Exception (SystemExit, KeyboardInterrupt) ends the worker: all
    jobs fail at once with 503, no new one is taken, and ``on_death`` is called, so that the process can end.
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
        if self.dead:  # it died in between
            for late in self.queue.drain():
                late.tell(Failed(gone()))

    def cancel(self, job: Job) -> None:
        """The job's answer is not wanted any more."""
        job.cancelled.set()
        self.queue.discard(job)

    def stop(self, seconds: float) -> bool:
        """End after the running token; True when the thread is gone."""
        self.queue.close()
        for job in self.current:
            job.cancelled.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def fail(self, job: Job, error: Exception) -> None:
        """Tell a job that it has no answer; what is no fault of its own goes to the log."""
        problem = told(error)
        if problem.status >= 500 and not isinstance(error, ApiError):
            self.errors += 1
            log.error("a request failed", exc_info=error)
        job.tell(Failed(problem))
        job.cancelled.set()

    def _run(self) -> None:
        try:
            while (jobs := self.queue.get(self.batch)) is not None:
                self.current = jobs = [j for j in jobs if not j.cancelled.is_set()]
                try:
                    if jobs:
                        jobs[0].work(jobs)
                except Exception as error:  # noqa: BLE001  # whatever broke, the next request must find a worker
                    for job in jobs:
                        self.fail(job, error)
                self.current = ()
        except BaseException as error:  # noqa: BLE001  # nobody else would see it in a thread
            self._die(error)

    def _die(self, error: BaseException) -> None:
        self.dead = True
        log.critical("the worker has died, every request gets 503", exc_info=error)
        for job in (*self.current, *self.queue.drain()):
            job.tell(Failed(gone()))
            job.cancelled.set()
        if self.on_death is not None:
            self.on_death()
