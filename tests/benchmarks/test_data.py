from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from limelight.benchmarks.data import Folder, Needed, check_media, column, missing, parse_rows
from limelight.errors import DataError
from limelight.types import Sample

FILE = Needed(("a.json", "sub/a.json"), "https://example.org")


def test_rows_of_every_format_and_their_facts(tmp_path: Path) -> None:
    texts = {
        "array.json": '[{"a": 1}, {"a": 2}]',
        "lines.json": '{"a": 1}\n{"a": 2}\n',
        "lines.jsonl": '\n{"a": 1}\n\n{"a": 2}',
        "tabs.tsv": "# comment\na\tb\n1\tx, y\n2\tz\n",
        "tabs.csv": "a\tb\n1\tx\n2\ty\n",  # DCASE's csv files are tab separated
        "commas.csv": 'a,b\n1,"x, y"\n2,z\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        folder = Folder(tmp_path)
        rows = folder.rows(Needed((name,), "here"))
        assert [str(r["a"]) for r in rows] == ["1", "2"], name
        assert folder.facts[name] == {
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "bytes": len(text),
            "rows": 2,
        }
    assert parse_rows(Path("tabs.tsv"), texts["tabs.tsv"])[0]["b"] == "x, y"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"a": 1}\n{"a"', "line 2"),
        ("a.json", '[{"a": 1}', "not valid JSON"),
        ("a.json", "[1]", "is a int"),
        ("a.tsv", "a\tb\n1\n", "columns, but the header has 2"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "columns, but the header has 2"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        Folder(tmp_path).rows(Needed((name,), "here"))


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        Folder(tmp_path).rows(FILE)


def test_empty_files(tmp_path: Path) -> None:
    for name in ("a.json", "a.tsv"):
        (tmp_path / name).write_text("")
        assert Folder(tmp_path).rows(Needed((name,), "here")) == []


def test_the_first_usual_name_is_taken_and_missing_ones_are_listed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(DataError, match=r"a\.json or sub/a\.json  \(from https://example\.org\)"):
        folder.find(FILE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.json").write_text("[]")
    assert folder.find(FILE) == tmp_path / "sub/a.json"
    (tmp_path / "a.json").write_text("[]")
    assert folder.find(FILE) == tmp_path / "a.json"
    assert folder.locate(Needed(("sub/",), "")) == tmp_path / "sub"
    assert folder.locate(Needed(("a.json/",), "")) is None
    with pytest.raises(DataError, match="does not exist"):
        Folder(tmp_path / "nowhere")
    assert str(tmp_path.resolve()) in str(missing(tmp_path, [FILE]))


def test_media_are_looked_for_in_each_folder(tmp_path: Path) -> None:
    folders = Needed(("one/", "two/"), "")
    folder = Folder(tmp_path)
    assert folder.media(folders, "x.jpg") == tmp_path / "one/x.jpg"
    (tmp_path / "two").mkdir()
    assert folder.media(folders, "x.jpg") == tmp_path / "two/x.jpg"
    (tmp_path / "one").mkdir()
    (tmp_path / "two/x.jpg").touch()
    assert folder.media(folders, "x.jpg") == tmp_path / "two/x.jpg"


def test_missing_media_are_counted(tmp_path: Path) -> None:
    samples = [Sample(str(k), "?", {"image": [tmp_path / f"{k}.jpg", object()]}) for k in range(8)]
    (tmp_path / "0.jpg").touch()
    with pytest.raises(DataError, match="7 of 8 media files are missing") as error:
        check_media(samples, "the moon")
    assert str(error.value).count(".jpg") == 5
    assert "the moon" in str(error.value)
    check_media(samples[:1], "")


def test_columns() -> None:
    assert column("f", {"b": 2}, "a", "b") == 2
    with pytest.raises(DataError, match=r"no column a or c; it has \['b'\]"):
        column("f", {"b": 2}, "a", "c")
