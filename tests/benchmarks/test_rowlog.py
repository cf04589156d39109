from __future__ import annotations

from pathlib import Path

import pytest

from limelight.benchmarks.rowlog import RowLog, latest, parse, read, write_json
from limelight.errors import DataError, SettingError


def test_append_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    with RowLog(path) as log:
        log.append({"id": "a", "answer": "naïve \ud800"})  # half a surrogate pair, as a broken tokenizer may give
        assert read(path) == [{"id": "a", "answer": "naïve \ud800"}]
        log.append({"id": "b"})
    with RowLog(path) as log:
        assert [r["id"] for r in log.rows] == ["a", "b"]
        log.append({"id": "c"})
    assert [r["id"] for r in read(path)] == ["a", "b", "c"]
    with pytest.raises(SettingError, match="not open"):
        log.append({"id": "d"})


@pytest.mark.parametrize(
    "tail", [b'{"id": "b", "answ', b'{"id": "b"}', b"\x00\x00\x00\n", b"\n", b'{"id": "b\n', b"[1]\n", b"\xc3"]
)
def test_half_a_line_is_repaired(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + tail)
    assert [r["id"] for r in read(path)] == ["a"]
    with RowLog(path) as log:
        assert [r["id"] for r in log.rows] == ["a"]
        log.append({"id": "b"})
    assert path.read_bytes() == b'{"id": "a"}\n{"id": "b"}\n'


def test_damage_in_the_middle_is_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": \n{"id": "c"}\n')
    with pytest.raises(DataError, match="line 2"), RowLog(path):
        pass
    assert path.read_bytes().count(b"\n") == 3
    with pytest.raises(DataError):
        parse(path, path.read_bytes())


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowLog(path), pytest.raises(SettingError, match="another process"), RowLog(path):
        pass
    with RowLog(path) as log:
        log.append({"id": "a"})


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with RowLog(tmp_path / "rows.jsonl") as log, pytest.raises(ValueError):
        log.append({"id": "a", "x": float("nan")})
    assert read(tmp_path / "rows.jsonl") == []


def test_latest() -> None:
    rows = [{"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}]
    assert latest(rows) == {"a": {"id": "a", "n": 3}, "b": {"id": "b", "n": 2}}
    assert list(latest(rows)) == ["a", "b"]


def test_json_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
