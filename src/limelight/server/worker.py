"""One thread owns the model. Requests wait in line by client, take turns, and leave when their client does."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from limelight.errors import LimelightError
from limelight.server.problems import ApiError, internal, of_library

log = logging.getLogger("limelight.server")


@dataclass(frozen=True)
class Failed:
    """The last event of a request that has no answer."""

    problem: ApiError


@dataclass(eq=False)
class Job:
    """A request on its way through the worker.

    ``work(job)`` runs in the worker's thread and calls ``emit`` with events; it looks at ``cancelled`` between tokens.
    """

    client: str
    work: Callable[[Job], None]
    emit: Callable[[Any], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class FairQueue:
    """First come, first served within a client; clients take turns."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self._change = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        with self._change:
            self._lines.setdefault(job.client, deque()).append(job)
            self._change.notify()

    def get(self) -> Job | None:
        """The next job; waits for one; None when closed."""
        with self._change:
            while not self._lines and not self._closed:
                self._change.wait()
            if self._closed:
                return None
            client, line = next(iter(self._lines.items()))
            job = line.popleft()
            del self._lines[client]
            if line:
                self._lines[client] = line  # to the end: others first
            return job

    def discard(self, job: Job) -> None:
        """Forget a job that still waits; nothing when it does not."""
        with self._change:
            line = self._lines.get(job.client)
            if line is not None and job in line:
                line.remove(job)
                if not line:
                    del self._lines[job.client]

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._lines.clear()
            self._change.notify_all()

    def __len__(self) -> int:
        with self._change:
            return sum(map(len, self._lines.values()))


class Worker:
    """Runs jobs one after the other in a thread of its own. An exception ends its job, never the worker."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.current: Job | None = None
        self.errors = 0
        self._thread = threading.Thread(target=self._run, name="limelight-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        self.queue.put(job)

    def cancel(self, job: Job) -> None:
        """The job's answer is not wanted any more."""
        job.cancelled.set()
        self.queue.discard(job)

    def stop(self, seconds: float) -> bool:
        """End after the running token; True when the thread is gone."""
        self.queue.close()
        current = self.current
        if current is not None:
            current.cancelled.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self.queue.get()) is not None:
            if job.cancelled.is_set():
                continue
            self.current = job
            try:
                job.work(job)
            except ApiError as told:
                job.emit(Failed(told))
            except LimelightError as error:
                problem = of_library(error)
                if problem.status >= 500:
                    self._report(error)
                job.emit(Failed(problem))
            except Exception as error:  # noqa: BLE001  # whatever broke, the next request must find a worker
                self._report(error)
                job.emit(Failed(internal()))
            finally:
                self.current = None

    def _report(self, error: Exception) -> None:
        self.errors += 1
        log.error("a request failed", exc_info=error)
