"""The GPU program at a tiny size on the CPU: rows in order, kept as they are done, failures told and not lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> gpu.Bench:
    return gpu.Bench(gpu.tiny(), tmp_path_factory.mktemp("gpu") / "gpu.json", 600)


def test_rows_of_one_group_are_measured(bench: gpu.Bench) -> None:
    wanted = ("meter", "cached LIME, 1 update", "VCD", "audit", "attribute", "agreement", "exact LIME, one token")
    for name, work, what in gpu.plan(bench):
        if name in wanted and (what["batch"], what["prompt_tokens"]) == (1, 600):
            bench.row(name, work, **what)
    rows = {r["name"]: r for r in json.loads(bench.out.read_text())["rows"]}
    assert set(rows) == set(wanted)
    assert not any("error" in r for r in rows.values())
    assert rows["meter"]["decode"]["low"] <= rows["meter"]["decode"]["ratio"] <= rows["meter"]["decode"]["high"]
    assert rows["agreement"]["phi_forward"] == pytest.approx(rows["agreement"]["phi_backward"], rel=1e-4)
    assert rows["agreement"]["greedy_tokens_equal"] is True
    assert "| meter | 1 | 600 |" in gpu.table(json.loads(bench.out.read_text()))


def test_a_failing_row_is_reported_and_the_run_continues(bench: gpu.Bench) -> None:
    def broken(_: dict[str, Any]) -> None:
        raise RuntimeError("out of luck")

    bench.row("broken", broken)
    assert json.loads(bench.out.read_text())["rows"][-1]["error"] == "RuntimeError: out of luck"


def test_no_row_starts_after_the_deadline(tmp_path: Path) -> None:
    late = gpu.Bench(gpu.tiny(), tmp_path / "late.json", -1)
    late.row("meter", lambda row: row.update(decode=1))
    assert late.rows[0]["left_out"] == "no time left"


def test_the_script_names_what_is_missing() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        ["bash", "bench/gpu.sh"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode != 0
    assert "no GPU is visible to torch" in done.stderr
