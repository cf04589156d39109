"""The same run on Ray: one answerer an actor, on as many machines as the cluster has.

Ray places the actors, restarts one that dies and repeats what it was working on; a batch that kills its worker again and
again becomes error rows, so that one poisonous sample cannot stop a run. Answers come back to this process, which writes
them as ever: a run can be started here and resumed there.

Actors rather than Ray Data: there, a batch that keeps killing its worker fails the whole dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limelight.benchmarks.engine import Local, Outcome, describe
from limelight.benchmarks.extras import need
from limelight.errors import SettingError
from limelight.types import Sample


class Worker:
    """What runs in an actor: builds the answerer once, then answers batches."""

    def __init__(self, make: Callable[[], Local]) -> None:
        self.engine = make()

    def ready(self) -> bool:
        """True once the answerer is built and ready; raises what that raised."""
        self.engine.prepare()
        return True

    def ask(self, batch: list[Sample]) -> list[Outcome]:
        return self.engine.ask(batch)


@dataclass(frozen=True)
class RayEngine:
    """An ``Engine`` for :func:`limelight.benchmarks.runner.run`.

    Attributes:
        make: builds the answerer inside a worker; must be picklable, so load the model in it, not outside.
        workers: actors; ``cpus`` and ``gpus`` what each one needs (fractions share a device).
        batch_size: samples a call.
        address: of a running cluster; None takes the one of RAY_ADDRESS, or starts one on this machine.
        retries: how often a batch is repeated after its worker died.
    """

    make: Callable[[], Local]
    workers: int = 1
    batch_size: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1 or self.batch_size < 1 or self.retries < 0:
            raise SettingError(
                f"workers and batch_size must be at least 1 and retries at least 0, got {self.workers}, "
                f"{self.batch_size}, {self.retries}",
                hint="workers=2, batch_size=1 and retries=2 are a start",
            )

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Outcome]:
        ray = need("ray", "ray")
        ours = not ray.is_initialized()
        if ours:
            ray.init(address=self.address, include_dashboard=None if self.address else False, log_to_driver=False)
        try:
            self._check(ray)
            yield from self._answer(ray, samples)
        finally:
            if ours:
                ray.shutdown()

    def _check(self, ray: Any) -> None:
        # a cluster may grow; this machine will not
        alone = len(ray.nodes()) == 1 and self.address is None
        have = ray.cluster_resources() if alone else {}
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if alone and each * self.workers > have.get(name, 0.0):
                raise SettingError(
                    f"{self.workers} workers of {each:g} {name} need {each * self.workers:g}, Ray has {have.get(name, 0.0):g}",
                    hint="take fewer workers, less for each, or the address of a larger cluster",
                )

    def _answer(self, ray: Any, samples: Sequence[Sample]) -> Iterator[Outcome]:
        batches = [list(samples[k : k + self.batch_size]) for k in range(0, len(samples), self.batch_size)]
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": -1, "max_task_retries": self.retries}
        actor = ray.remote(**options)(Worker)
        idle = [actor.remote(self.make) for _ in range(min(self.workers, len(batches)))]
        ray.get([a.ready.remote() for a in idle])
        busy: dict[Any, tuple[Any, list[Sample]]] = {}
        while batches or busy:
            while batches and idle:
                worker, batch = idle.pop(), batches.pop(0)
                busy[worker.ask.remote(batch)] = worker, batch
            (finished, *_), _ = ray.wait(list(busy), num_returns=1)
            worker, batch = busy.pop(finished)
            idle.append(worker)
            try:
                yield from ray.get(finished)
            except ray.exceptions.RayError as error:
                yield from (Outcome(s.id, None, describe(error), 0.0) for s in batch)
