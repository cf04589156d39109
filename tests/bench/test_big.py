"""The 7B-width bench: prompts fit their models, a full stack from two depths, and a row at tiny size."""

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
        for name, row in big.measured(model, inputs, 1, ("greedy", "meter")).items():
            assert row["peak_bytes"] > 0
            rows.append({"shape": shape.name, "depth": depth, "full": shape.full, "name": name, **row})
    lines = big_table.table({"rows": rows}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["greedy", "meter", "audit"]
    assert len({line.count("|") for line in lines}) == 1
