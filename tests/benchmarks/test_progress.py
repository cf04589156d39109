from __future__ import annotations

import io

import pytest
from rich.console import Console

from limelight.benchmarks import progress
from limelight.benchmarks.progress import Progress, duration, rate


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool, total: int = 20, done: int = 10, fails: bool = True) -> str:
    out = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda **options: Console(file=out, force_terminal=terminal, width=100, **{**options, "stderr": False}),
    )
    with Progress("pope", total, done) as bar:
        for k in range(total - done):
            bar.step("no [/red] picture\nat all" if fails and k < 2 else None)
    return out.getvalue()


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, True)
    assert "10 of 20 rows already done" in text
    assert "20/20" in text
    assert "2 failed" in text
    assert "rows/s" in text
    assert "a row failed: no [/red] picture" in text


def test_off_a_terminal_a_line_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, False, total=100, done=0, fails=False)
    lines = text.splitlines()
    assert [x.partition(",")[0] for x in lines] == [f"pope: {k} of 100" for k in range(10, 101, 10)]
    assert all("rows/s" in x for x in lines)
    assert ["left" in x for x in lines] == [True] * 9 + [False]
    assert "2 rows failed; run the same command again to retry them" in shown(monkeypatch, False)


def test_rate_and_estimate() -> None:
    assert [rate(x) for x in (0.25, 1.0, 2.5)] == ["4.00 rows/s", "1.00 rows/s", "2.5 s/row"]
    assert [duration(x) for x in (4.4, 89, 900, 7200)] == ["4 s", "89 s", "15 min", "2.0 h"]


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("pope", 1, 0, quiet=True) as bar:
        bar.step("error")
    assert capsys.readouterr().err == ""
