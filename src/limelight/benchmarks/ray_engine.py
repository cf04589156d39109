"""An engine on Ray Data: stateful workers with one model each, on all machines of the cluster.

Ray Data places the workers, replaces those that die and retries their samples. A sample that kills every worker would be
retried for ever: ``Attempts`` counts retries, and such a sample becomes an error row. Answers return to the calling
process, which writes them as usual: a run can be started locally and resumed on Ray, or the reverse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limelight.benchmarks.engine import Local, Outcome, describe
from limelight.benchmarks.extras import need
from limelight.errors import DataError, SettingError
from limelight.types import Sample


class Attempts:
    """An actor that counts, per key, how often work was started but not finished."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def begin(self, key: str) -> int:
        """Count one attempt; return the total including it."""
        self.begun[key] += 1
        return self.begun[key]

    def end(self, key: str) -> None:
        del self.begun[key]


class Worker:
    """The stateful callable that Ray Data runs in an actor: loads the model once, then answers batches."""

    def __init__(self, make: Callable[[], Local], attempts: Any, retries: int) -> None:
        self.ray = need("ray", "ray")
        self.engine, self.attempts, self.retries = make(), attempts, retries
        self.ready = False

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[bytes]]:
        return {"outcomes": [self.ray.cloudpickle.dumps(self.answer(self.ray.cloudpickle.loads(rows["batch"][0])))]}

    def answer(self, batch: list[Sample]) -> list[Outcome] | dict[str, str]:
        """Return the outcomes, or the error that prevented this worker from starting, which stops the run."""
        try:
            if not self.ready:
                self.engine.prepare()
                self.ready = True
        except Exception as error:  # noqa: BLE001 - raised again where the run is
            return describe(error)
        # an earlier attempt at this batch killed its worker: sample by sample, so that only the faulty ones fail
        if len(batch) > 1 and self._begin("batch " + batch[0].id) == 1:
            return self.engine.ask(batch)
        return [self._alone(s) for s in batch]

    def _alone(self, sample: Sample) -> Outcome:
        if (tries := self._begin(sample.id)) > 1 + self.retries:
            message = f"its worker died {tries - 1} times"
            return Outcome(sample.id, None, {"type": "WorkerDied", "message": message, "trace": message}, 0.0)
        (outcome,) = self.engine.ask([sample])
        self.ray.get(self.attempts.end.remote(sample.id))
        return outcome

    def _begin(self, key: str) -> int:
        return int(self.ray.get(self.attempts.begin.remote(key)))


@dataclass(frozen=True)
class RayEngine:
    """An ``Engine`` for :func:`limelight.benchmarks.runner.run`.

    Attributes:
        make: builds the local engine inside a worker; must be picklable, so load the model inside it, not outside.
        workers: number of workers; ``cpus`` and ``gpus``: resources of each (fractions share a device).
        batch_size: samples per call.
        address: address of a running cluster; None: RAY_ADDRESS, or a new cluster on this machine.
        retries: how often a sample is retried after its worker died.
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
                hint="for example workers=2, batch_size=1, retries=2",
            )

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Outcome]:
        ray = need("ray", "ray")
        if not samples:
            return
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
        # a cluster may grow; a single machine cannot
        alone = len(ray.nodes()) == 1 and self.address is None
        have = ray.cluster_resources() if alone else {}
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if alone and each * self.workers > have.get(name, 0.0):
                raise SettingError(
                    f"{self.workers} workers with {each:g} {name} each need {each * self.workers:g}, Ray has {have.get(name, 0.0):g}",
                    hint="use fewer workers, fewer resources per worker, or the address of a larger cluster",
                )

    def _answer(self, ray: Any, samples: Sequence[Sample]) -> Iterator[Outcome]:
        data = need("ray.data", "ray")
        context = data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False  # the runner shows its own
        batches = [list(samples[k : k + self.batch_size]) for k in range(0, len(samples), self.batch_size)]
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
        # one block per batch, so that every answer is written as soon as it arrives
        rows = data.from_items(
            [{"batch": ray.cloudpickle.dumps(b)} for b in batches], override_num_blocks=len(batches)
        ).map_batches(
            Worker,
            fn_constructor_args=(self.make, attempts, self.retries),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(self.workers, len(batches))),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        try:
            for row in rows.iter_rows():
                found: list[Outcome] | dict[str, str] = ray.cloudpickle.loads(row["outcomes"])
                if isinstance(found, dict):
                    raise DataError(
                        f"a worker failed to start: {found['type']}: {found['message']}",
                        hint="the same model and settings must load with --engine local",
                    )
                yield from found
        finally:
            context.enable_progress_bars = bars
