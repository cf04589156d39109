"""The speed bench runs one cell, counts FLOPs, and the tables in the documentation are the committed ones."""

import json
from pathlib import Path

import torch
from bench.flops import FlopCounter

from bench import speed, tables

ROOT = Path(__file__).resolve().parents[2]


def test_flops_of_a_product_forward_and_backward() -> None:
    a = torch.randn(3, 4, requires_grad=True)
    b = torch.randn(4, 5, requires_grad=True)
    with FlopCounter() as counter:
        (a @ b).sum().backward()
    assert counter.total == 3 * 2 * 3 * 4 * 5


def test_plan_has_greedy_at_every_length_and_batch() -> None:
    cells = speed.plan(quick=False, gpu=False)
    shapes = {(length, batch) for _, length, batch, *_ in cells}
    assert {(length, batch) for name, length, batch, *_ in cells if name == "greedy"} == shapes
    assert shapes == {(length, batch) for length in (150, 600, 2400) for batch in (1, 8)}


def test_table_has_a_row_a_cell() -> None:
    row = {
        "name": "greedy", "prompt_tokens": 600, "batch": 1, "seconds_per_token": 0.02, "peak_bytes": 2**20, "flops_per_token": 1e9,
        "token": {"ratio": 1.0, "low": 0.99, "high": 1.01}, "prefill": {"ratio": 1.0, "low": 0.9, "high": 1.1},
    }  # fmt: skip
    other = {**row, "name": "meter", "seconds_per_token": 0.03, "token": {"ratio": 1.5}}
    text = speed.table([row, other])
    assert "| greedy | 600 | 1 | 20.0 | 1.00 [0.99, 1.01] | 1.0 [0.90, 1.10] |" in text
    assert "| meter | 600 | 1 | 30.0 | 1.5 |" in text  # of an older file, without intervals


def test_documentation_holds_the_committed_tables() -> None:
    for page in tables.PAGES:
        assert tables.filled(page.read_text()) == page.read_text(), f"{page.name}: run python -m bench.tables"


def test_committed_speed_rows_are_complete() -> None:
    rows = json.loads((ROOT / "bench" / "results" / "speed.json").read_text())["rows"]
    keys = {"name", "prompt_tokens", "batch", "seconds_per_token", "token", "prefill", "peak_bytes", "flops_per_token"}
    assert rows
    assert all(keys <= set(row) for row in rows)
