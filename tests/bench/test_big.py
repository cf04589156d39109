"""The 7B-width bench: prompts fit their models, a full stack from two depths, and a row at tiny size."""

from pathlib import Path
from typing import Any

import pytest

from bench import big, big_table


def test_a_full_stack_is_linear_in_its_layers() -> None:
    assert big.stacked(10.0, 14.0, (2, 6), 32) == pytest.approx(40.0)
    assert big.stacked(10.0, 14.0, (2, 6), 6) == pytest.approx(14.0)


@pytest.mark.parametrize("shape", big.TINY, ids=lambda s: s.name)
def test_rows_and_table_at_tiny_size(shape: big.Shape) -> None:
    rows: list[dict[str, Any]] = []
    for depth in shape.depths:
        model, inputs = big.build(shape, depth), big.prompt(shape)
        for name, row in big.measured(model, inputs, 1, ("greedy", "meter", "audit")).items():
            assert row["peak_bytes"] > 0
            rows.append({"shape": shape.name, "depth": depth, "full": shape.full, "name": name, **row})
    lines = big_table.table({"rows": rows}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["greedy", "meter", "audit"]
    assert len({line.count("|") for line in lines}) == 1


def test_only_what_the_file_lacks_is_measured(tmp_path: Path) -> None:
    shape, out = big.TINY[0], tmp_path / "big.json"
    kept = {"shape": shape.name, "depth": 1, "seconds": -1.0}
    found: dict[str, Any] = {"rows": [{**kept, "name": n} for n in big.SETTINGS if n not in ("meter", "audit")]}
    big._rows(shape, 1, 1, found, out)
    assert sorted(r["name"] for r in found["rows"]) == sorted(big.SETTINGS)
    new = [r for r in found["rows"] if "seconds" not in r]
    assert [r["name"] for r in new] == ["meter", "audit"] and new[0]["token"]["greedy_seconds"] > 0
    before = out.read_text()
    big._rows(shape, 1, 1, found, out)
    assert out.read_text() == before and len(found["rows"]) == len(big.SETTINGS)
