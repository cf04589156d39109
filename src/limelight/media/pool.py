"""A pool of decoding processes: scheduling of jobs and enforcement of their time limits."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from limelight.errors import LimelightError, MediaError, UnsupportedError
from limelight.media.process import Decoded, DecodingProcess, Job, died, out_of_time

SLOW_AFTER = 0.5  # CPU seconds (or twice as many wall seconds) after which a job gives way to waiting ones
TICK = 0.05  # seconds between two checks of running jobs
START_ATTEMPTS = 3
BLOAT = 300_000_000  # bytes; a process that holds more after a job is replaced


@dataclass(eq=False)
class Ticket:
    """A submitted job; :meth:`cancel` ends it whether it is queued or running."""

    job: Job
    pool: DecoderPool
    future: Future[Decoded] = field(default_factory=Future)
    slow: bool = False
    begun: float = 0.0
    killed: str = ""
    retried: bool = False

    def cancel(self) -> None:
        """Cancel the job: its result is no longer needed."""
        self.pool.cancel(self)


class _FairQueue:
    """A queue that is first in, first out within a group, and round-robin across groups."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def put(self, ticket: Ticket) -> None:
        self._groups.setdefault(ticket.job.group, deque()).append(ticket)

    def pop(self) -> Ticket:
        group, tickets = self._groups.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._groups[group] = tickets  # to the end: other groups go first
        return ticket

    def remove(self, ticket: Ticket) -> None:
        tickets = self._groups.get(ticket.job.group, deque())
        with contextlib.suppress(ValueError):
            tickets.remove(ticket)
        if not tickets:
            self._groups.pop(ticket.job.group, None)

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))


class DecoderPool:
    """Up to ``size`` processes, and after :meth:`start` half as many spares.

    Half of them (at least one) may be busy with slow jobs: videos, and any job that has taken half a second of CPU time
    (or one second of wall time on a busy machine).
    A slow job beyond that share is stopped as soon as another job waits, and is restarted when a slow place is free.
    So slow files, however many, delay fast ones by half a second at most.
    """

    def __init__(self, size: int) -> None:
        self.size, self.slow_places, self.owner = size, max(1, size // 2), os.getpid()
        self.closed = False
        self._change = threading.Condition()
        self._quick, self._slow = _FairQueue(), _FairQueue()
        self._running: dict[Ticket, DecodingProcess] = {}
        self._processes: set[DecodingProcess] = set()
        self._spares: list[DecodingProcess] = []
        self._keeps_spares = False
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def start(self) -> None:
        """Start all processes now, before the first job, and keep spares to replace those that will be killed."""
        with self._change:
            while len(self._threads) < self.size and not self.closed:
                self._spawn()
            if not self._keeps_spares and not self.closed:
                self._keeps_spares = True
                threading.Thread(target=self._keep_spares, name="limelight-decoder-spares", daemon=True).start()

    def _spawn(self) -> None:
        if not self._threads:
            threading.Thread(target=self._watch, name="limelight-decoder-watch", daemon=True).start()
        thread = threading.Thread(target=self._work, name=f"limelight-decoder-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def submit(self, job: Job) -> Ticket:
        """Queue a job; the ``future`` of the ticket holds the result."""
        ticket = Ticket(job, self, slow=job.limits.slow)
        with self._change:
            if self.closed:
                raise UnsupportedError("the decoder pool is closed", hint="call default_pool() for a new one")
            (self._slow if ticket.slow else self._quick).put(ticket)
            if len(self._quick) + len(self._slow) > self._idle and len(self._threads) < self.size:
                self._spawn()
            self._change.notify_all()
        return ticket

    def run(self, job: Job, timeout: float | None = None) -> Decoded:
        """Run a job and return its result, within ``timeout`` seconds in total."""
        ticket = self.submit(job)
        try:
            return ticket.future.result(timeout)
        except TimeoutError:
            raise MediaError(
                f"{job.name} was not decoded within {timeout:g} s", hint="allow more time, or make it smaller"
            ) from None
        finally:
            ticket.cancel()
            del ticket  # breaks a reference cycle: ticket -> error -> frames -> ticket and file

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a queued or running job; does nothing when it is done."""
        with self._change:
            if ticket.future.done():
                return
            self._quick.remove(ticket)
            self._slow.remove(ticket)
            ticket.future.cancel()
            if ticket in self._running:
                self._kill(ticket, "cancelled")

    def close(self) -> None:
        """End all processes and wait for them."""
        if self.owner != os.getpid():
            return
        with self._change:
            self.closed = True
            for queue in (self._quick, self._slow):
                while len(queue):
                    queue.pop().future.cancel()
            for process in self._processes:
                process.kill()
            self._change.notify_all()
        for spare in self._spares:
            spare.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10)

    def _kill(self, ticket: Ticket, why: str) -> None:
        ticket.killed = ticket.killed or why
        self._running[ticket].kill()

    def _slow_running(self) -> int:
        return sum(t.slow for t in self._running)

    def _take(self, process: DecodingProcess) -> Ticket | None:
        """Wait for the next job for a process; None when the pool is closed."""
        with self._change:
            self._idle += 1
            try:
                while not self.closed:
                    queue = self._slow if len(self._slow) and self._slow_running() < self.slow_places else self._quick
                    if len(queue):
                        ticket = queue.pop()
                        if ticket.begun or ticket.future.set_running_or_notify_cancel():
                            ticket.begun = time.monotonic()
                            ticket.killed = ""
                            self._running[ticket] = process
                            self._change.notify_all()
                            return ticket
                        continue
                    self._change.wait()
                return None
            finally:
                self._idle -= 1

    def _work(self) -> None:
        """Thread body: run jobs on one process after another."""
        process: DecodingProcess | None = None
        while not self.closed:
            if process is None:
                process = self._started()
                if process is None:
                    return
            ticket = self._take(process)
            if ticket is not None:
                self._serve(ticket, process)
            if ticket is None or not process.alive or process.niced or process.resident() > BLOAT:
                self._discard(process)
                process = None
        if process is not None:
            self._discard(process)

    def _started(self) -> DecodingProcess | None:
        """Return a spare or new process; None when none can be started, after failing every queued job."""
        with self._change:
            while self._spares:
                spare = self._spares.pop()
                self._change.notify_all()
                if spare.alive:
                    return spare
                self._processes.discard(spare)
                spare.close()
        for attempt in range(START_ATTEMPTS):
            try:
                process = DecodingProcess()
            except UnsupportedError as error:
                problem = error
                time.sleep(0.1 * attempt)
                continue
            with self._change:
                if not self.closed:
                    self._processes.add(process)
                    return process
            process.close()
            return None
        with self._change:
            self._threads.remove(threading.current_thread())  # the next job tries again
            for queue in (self._quick, self._slow):
                while len(queue):
                    _settle(queue.pop(), problem)
        return None

    def _keep_spares(self) -> None:
        """Thread body: keep as many spare processes as there are places for slow jobs."""
        while True:
            with self._change:
                while len(self._spares) >= self.slow_places and not self.closed:
                    self._change.wait()
                if self.closed:
                    for spare in self._spares:
                        spare.close()
                    return
            try:
                process = DecodingProcess()
            except UnsupportedError:
                time.sleep(1.0)  # the error is raised by the next job that needs a process
                continue
            with self._change:
                self._processes.add(process)
                self._spares.append(process)

    def _discard(self, process: DecodingProcess) -> None:
        with self._change:
            self._processes.discard(process)
        process.close()

    def _serve(self, ticket: Ticket, process: DecodingProcess) -> None:
        """Run one job on one process and store its result or its error in the ticket."""
        result: Decoded | None = None
        problem: BaseException | None = None
        dead = lost = not process.alive
        try:
            result = None if dead else process.run(ticket.job)
        except LimelightError as error:
            problem = error.with_traceback(None)  # its frames reference the file
        except (EOFError, OSError, ValueError, KeyError, TypeError):  # died, or sent an invalid reply
            code = process.ended()
            problem = died(ticket.job, code, ticket.killed)
            # it may have died while idle, or because the machine ran out of memory: retry once
            lost = not ticket.killed and not out_of_time(code) and not ticket.retried
        except Exception as error:  # noqa: BLE001  # raised where the result is awaited
            problem = error.with_traceback(None)
        with self._change:
            self._running.pop(ticket, None)
            again = lost or (ticket.killed == "slow" and result is None)
            if again and not self.closed:
                ticket.slow, ticket.retried = ticket.slow or not lost, ticket.retried or (lost and not dead)
                (self._slow if ticket.slow else self._quick).put(ticket)
            self._change.notify_all()
        if self.closed or ticket.killed == "cancelled":
            _settle(ticket, CancelledError())
        elif not again:
            _settle(ticket, problem if result is None else result)

    def _watch(self) -> None:
        """Thread body: kill jobs that exceed their time or memory, and slow ones that hold up others."""
        while True:
            with self._change:
                while not self._running and not self.closed:
                    self._change.wait()
                if self.closed:
                    return
                for ticket, process in list(self._running.items()):
                    self._check(ticket, process)
            time.sleep(TICK)

    def _check(self, ticket: Ticket, process: DecodingProcess) -> None:
        limits, elapsed = ticket.job.limits, time.monotonic() - ticket.begun
        if elapsed > limits.wall:
            self._kill(ticket, "time")
        elif process.resident() > limits.memory + BLOAT:
            self._kill(ticket, "memory")
        elif not ticket.slow and max(process.used(elapsed), elapsed / 2) > SLOW_AFTER:
            if self._slow_running() < self.slow_places:
                ticket.slow = True
                process.yield_to_others()
            elif len(self._quick) > sum(t.killed == "slow" for t in self._running):
                self._kill(ticket, "slow")


def _settle(ticket: Ticket, outcome: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # it was cancelled meanwhile
        if isinstance(outcome, BaseException):
            ticket.future.set_exception(outcome)
        else:
            ticket.future.set_result(outcome)
