from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limelight.benchmarks.results import Results
from limelight.benchmarks.scorers.measure import Metric
from limelight.benchmarks.tables import (
    Table,
    cell,
    differing_table,
    labels,
    number,
    paired_table,
    render,
    side_by_side,
)
from limelight.errors import SettingError
from tests.benchmarks.test_runner import go

TABLE = Table("A_title & more", ("", "x|y", "50 %"), (("a<b", "1", "{2}"), ("c\\d", "", "~")), ("a note",))


def test_numbers_and_cells() -> None:
    assert number(0.8789) == "87.9"
    assert number(-0.01, signed=True) == "-1.0"
    assert number(0.01, signed=True) == "+1.0"
    assert [number(v, "") for v in (3.14159, 1234.5, math.nan)] == ["3.14", "1234.5", "-"]
    assert number(7, "count") == "7"
    assert cell(Metric(0.5, 0.4, 0.6, 10)) == "50.0 [40.0, 60.0]"
    assert cell(Metric(0.5, 0.4, 0.6, 10), intervals=False) == "50.0"
    assert cell(Metric(0.5)) == "50.0"
    assert cell(None) == ""


def test_markdown() -> None:
    assert render([TABLE], "markdown").splitlines() == [
        "**A_title & more**",
        "",
        "|  | x\\|y | 50 % |",
        "| --- | ---: | ---: |",
        "| a<b | 1 | {2} |",
        "| c\\\\d |  | ~ |",
        "",
        "a note  ",
    ]


def test_latex_is_escaped() -> None:
    text = render([TABLE], "latex")
    assert r"\caption{A\_title \& more. a note}" in text
    assert r"a\textless{}b & 1 & \{2\} \\" in text
    assert r"c\textbackslash{}d &  & \textasciitilde{} \\" in text
    assert r"x\textbar{}y & 50 \%" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_html_is_well_formed_and_escaped() -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.text: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data: str) -> None:
            self.text.append(data)

    reader = Reader()
    reader.feed(render([TABLE], "html"))
    assert reader.open == []
    assert {"a<b", "{2}", "A_title & more", "a note"} <= set(reader.text)


def test_terminal() -> None:
    text = render([TABLE], "terminal", width=60)
    assert "A_title" in text
    assert re.search(r"a<b\s+│\s+1\s+│\s+\{2\}", text)
    assert max(map(len, text.splitlines())) <= 60
    with pytest.raises(SettingError, match="pdf"):
        render([TABLE], "pdf")  # type: ignore[arg-type]


@pytest.fixture
def results(tmp_path: Path) -> list[Results]:
    return [
        go(tmp_path / "x/greedy", lambda s: "Yes.", settings={"strategy": "greedy"}),
        go(tmp_path / "x/lime", lambda s: "no!" if s.id.endswith("/1") else "?", settings={"strategy": "lime"}),
    ]


def test_side_by_side(results: list[Results]) -> None:
    table = side_by_side(results)
    assert table.header == ("", "greedy", "lime")
    by_name = {row[0]: row[1:] for row in table.rows}
    assert by_name["accuracy"][0].startswith("50.0 [")
    assert by_name["unparsed"] == ("0", "38")
    assert by_name["rows answered"] == ("40 of 40", "40 of 40")
    assert "parser strict" in table.title
    only = side_by_side(results, metrics=["acc*"], intervals=False, names=["a", "b"])
    assert [r[0] for r in only.rows] == ["accuracy", "unparsed", "rows answered"]  # unparsed answers are never hidden
    assert only.rows[0] == ("accuracy", "50.0", "5.0")
    assert only.header == ("", "a", "b")


def test_runs_that_cannot_be_compared_are_marked(results: list[Results], tmp_path: Path) -> None:
    other = go(tmp_path / "x/other", seed=1, limit=1)
    failed = go(tmp_path / "x/failed", lambda s: 1 / 0, seed=1, limit=1)  # type: ignore[arg-type, return-value]
    table = side_by_side([results[0], other, failed])
    assert "NOT COMPARABLE: greedy and other differ in seed" in table.notes
    assert "failed is incomplete" in table.notes
    assert ("rows failed", "0", "0", "2") in table.rows


def test_paired_and_differing(results: list[Results]) -> None:
    greedy, lime = (r.run for r in results)
    table = paired_table(greedy, lime, resamples=200)
    accuracy = next(r for r in table.rows if r[0] == "accuracy")
    assert accuracy[1:3] == ("50.0", "5.0")
    assert accuracy[3].startswith("-45.0 [-")
    assert accuracy[5:7] == ("20", "2")
    assert accuracy[7] == "<.001"
    differ = differing_table(greedy, lime, limit=3)
    assert differ.notes[0] == "2 fixed, 20 broken, 18 worded differently"
    assert [r[0] for r in differ.rows] == ["fixed", "fixed", "broken"]
    assert differ.notes[1] == "3 of 40 shown"
    from limelight.benchmarks.compare import differing

    assert next(iter(differing(greedy, lime))).verdict == "fixed"


def test_labels_take_as_many_parents_as_needed(results: list[Results], tmp_path: Path) -> None:
    twin = go(tmp_path / "y/greedy", limit=1)
    assert labels([results[0].run, results[1].run]) == ["greedy", "lime"]
    assert labels([results[0].run, twin.run]) == ["x/greedy", "y/greedy"]
    assert labels([]) == []


@pytest.mark.parametrize("metrics", [1, 3, 9])
def test_no_word_is_broken_at_80_columns(metrics: int) -> None:
    header = (
        "",
        "greedy",
        "relevance-contrastive",
        "difference",
        "p",
        "only greedy",
        "only relevance-contrastive",
        "n",
    )
    rows = [
        (f"E-wrong/clear/accuracy_{i}", "25.0", "50.0", "+25.0 [0.0, +75.0]", "0.639", "0", "1", "4")
        for i in range(metrics)
    ]
    text = render([Table("two decoders", header, tuple(rows), ("a note",))], "terminal", width=80)
    assert max(map(len, text.splitlines())) <= 80
    for whole in (
        "E-wrong/clear/accuracy_0",
        "relevance-contrastive",
        "difference",
        "+75.0]",
        f"accuracy_{metrics - 1}",
    ):
        assert whole in text
    assert text.count("two decoders") == text.count("a note") == 1
    words = {w for cell in (*header, *(c for row in rows for c in row)) for w in cell.split()}
    assert set(re.sub("[┏┓┗┛┃│┡┩╇┳┴┬┼├┤└┘━─]", " ", text).split()) - {"two", "decoders", "a", "note"} == words
