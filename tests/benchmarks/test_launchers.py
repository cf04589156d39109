"""``limelight bench --shard auto`` under the launchers of the field: two processes, one run, nothing lost, nothing twice."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from limelight.benchmarks import rowlog
from limelight.benchmarks.results import open_results
from tests.benchmarks.stored import read_results
from tests.running import finished

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SHARD = """
import pathlib, sys
from limelight.benchmarks.runner import shard_from_environment
first, of = shard_from_environment()
pathlib.Path(sys.argv[1], f"{first}of{of}").touch()
"""


@pytest.mark.slow
def test_accelerates_processes_know_their_shards(tmp_path: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed (pip install 'limelight[deploy]')")
    (tmp_path / "script.py").write_text(SHARD)
    # a port of its own: two runs on one machine; --multi_gpu starts a process a shard; without GPUs as well
    launch = [
        "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "script.py", "found",
    ]  # fmt: skip
    (tmp_path / "found").mkdir()
    done = finished([sys.executable, *launch], cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {p.name for p in (tmp_path / "found").iterdir()} == {"0of2", "1of2"}


@pytest.mark.slow
def test_two_processes_of_torchrun_share_a_run(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    bench = [
        "bench", "demo_vision", "--model", "demo-vision", "--split", "none/clear", "--split", "E-wrong/clear",
        "--limit", "4", "--max-new-tokens", "2", "--out", str(tmp_path / "run"), "--shard", "auto",
    ]  # fmt: skip
    done = finished([sys.executable, *torchrun, sys.executable, "-m", "limelight", *bench], cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    parts = {p.name: [r["id"] for r in rowlog.read(p)] for p in (tmp_path / "run").glob("rows.*.jsonl")}
    assert {name: len(ids) for name, ids in parts.items()} == {"rows.0of2.jsonl": 4, "rows.1of2.jsonl": 4}
    assert len({i for ids in parts.values() for i in ids}) == 8
    merged = open_results(tmp_path / "run")
    assert merged.complete
    assert [r.meta["split"] for r in merged.records] == ["none/clear"] * 4 + ["E-wrong/clear"] * 4
    stored = read_results(tmp_path / "run")
    assert (stored["rows"], stored["complete"]) == (8, True)
    assert stored["metrics"]["none/clear/accuracy"]["n"] == 4
