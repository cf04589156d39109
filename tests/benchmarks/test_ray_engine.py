"""The run on Ray: two workers, one of them killed; a poisonous sample; a run that goes on elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limelight.benchmarks.engine import Local
from limelight.benchmarks.ray_engine import RayEngine
from limelight.benchmarks.results import open_results
from limelight.benchmarks.rowlog import read
from limelight.errors import DataError, SettingError
from tests.benchmarks.test_runner import go, toy


def test_settings() -> None:
    for wrong in ({"workers": 0}, {"batch_size": 0}, {"retries": -1}):
        with pytest.raises(SettingError):
            RayEngine(lambda: Local(lambda s: ""), **wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's own
def test_a_killed_worker_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'limelight[ray]')")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # a cluster of its own
    marker = str(tmp_path / "killed")

    def make():  # type: ignore[no-untyped-def]
        import os
        import signal

        def answer(sample):  # type: ignore[no-untyped-def]
            if sample.id == "coco/random/7" and not os.path.exists(marker):
                with open(marker, "w"):
                    pass
                os.kill(os.getpid(), signal.SIGKILL)
            if sample.id == "coco/random/9" and not os.path.exists(f"{marker}-cured"):
                os.kill(os.getpid(), signal.SIGKILL)  # every worker that touches it dies
            if sample.id == "coco/popular/3" and not os.path.exists(f"{marker}-cured"):
                raise ValueError("no picture")
            return f"{sample.target} {os.getpid()}"

        return Local(answer)

    engine = RayEngine(make, workers=2, cpus=0.5, batch_size=1, retries=1)
    first = go(tmp_path / "run", None, engine=engine)
    assert os.path.exists(marker)
    assert set(first.run.errors) == {"coco/random/9", "coco/popular/3"}
    assert first.run.errors["coco/popular/3"]["type"] == "ValueError"
    assert len(read(tmp_path / "run/rows.jsonl")) == len(first.run.rows) == 40
    workers = {r.answer.split()[1] for r in first.run.records}
    assert len(workers) >= 3  # two, and those that took the place of the dead
    assert str(os.getpid()) not in workers
    assert first.run.errors["coco/random/9"] | {"trace": ""} == {
        "type": "WorkerDied", "message": "its worker died 2 times", "trace": "",
    }  # fmt: skip
    (tmp_path / "killed-cured").touch()
    # the run is finished in this process: engines share the log
    second = go(tmp_path / "run", lambda s: str(s.target))
    assert second.run.complete
    assert open_results(tmp_path / "run", toy()).score().metrics["accuracy"].value == 1.0
    import ray

    assert not ray.is_initialized()  # what the engine started, it has shut down
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        _batches(tmp_path)
        with pytest.raises(SettingError, match="99 workers with 1 CPU each need 99"):
            go(tmp_path / "too-many", None, engine=RayEngine(make, workers=99))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def _batches(tmp_path: Path) -> None:
    """In a batch that kills its worker only the guilty sample fails; a worker that cannot get ready stops the run."""

    def poisoned():  # type: ignore[no-untyped-def]
        import os
        import signal

        def many(batch):  # type: ignore[no-untyped-def]
            if any(s.id == "coco/random/4" for s in batch):
                os.kill(os.getpid(), signal.SIGKILL)
            return [f"{s.target} {len(batch)}" for s in batch]

        return Local(answer_many=many, batch_size=3)

    engine = RayEngine(poisoned, workers=1, cpus=0.5, batch_size=3, retries=0)
    found = go(tmp_path / "batches", None, engine=engine, limit=6).run
    assert set(found.errors) == {"coco/random/4"}
    sizes = {r.id: r.answer.split()[1] for r in found.records}
    assert (sizes["coco/random/0"], sizes["coco/random/3"], sizes["coco/random/5"]) == ("3", "1", "1")

    def broken():  # type: ignore[no-untyped-def]
        class Model:
            def prepare(self):  # type: ignore[no-untyped-def]
                raise OSError("no weights")

            def __call__(self, sample):  # type: ignore[no-untyped-def]
                return ""

        return Local(Model())

    with pytest.raises(DataError, match="a worker failed to start: OSError: no weights"):
        go(tmp_path / "broken", None, engine=RayEngine(broken, cpus=0.5))
    assert read(tmp_path / "broken/rows.jsonl") == []
