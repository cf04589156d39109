"""The run on Ray: two workers, one of them killed; a poisonous sample; a run that goes on elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limelight.benchmarks.engine import Local
from limelight.benchmarks.ray_engine import RayEngine
from limelight.benchmarks.results import open_results
from limelight.benchmarks.rowlog import read
from limelight.errors import SettingError
from tests.benchmarks.test_runner import go, toy


def test_settings() -> None:
    for wrong in ({"workers": 0}, {"batch_size": 0}, {"retries": -1}):
        with pytest.raises(SettingError):
            RayEngine(lambda: Local(lambda s: ""), **wrong)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_killed_worker_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed (pip install 'limelight[ray]')")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
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
    (tmp_path / "killed-cured").touch()
    # the run is finished in this process: engines share the log
    second = go(tmp_path / "run", lambda s: str(s.target))
    assert second.run.complete
    assert open_results(tmp_path / "run", toy()).score().metrics["accuracy"].value == 1.0
    with pytest.raises(SettingError, match="99 workers of 1 CPU need 99"):
        go(tmp_path / "too-many", None, engine=RayEngine(make, workers=99))
