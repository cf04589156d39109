"""README: short, its lines print what it says, its picture is of today's model, its tables of the committed results."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tools import fresh_pictures, readme_picture

from bench import readme_tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_starts_with_the_picture() -> None:
    lines = README.splitlines()
    assert len(lines) < 150
    picture = next(i for i, line in enumerate(lines) if line.startswith("!["))
    assert picture < 8
    assert "docs/images/why.png" in lines[picture]


def test_the_first_lines_print_what_is_below_them() -> None:
    block = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert block is not None
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(block[1], "README", "exec"), {})
    assert told.getvalue() == block[2]


def test_the_picture_is_up_to_date() -> None:
    with Image.open(readme_picture.TARGET) as picture:
        made, when = json.loads(picture.info["Description"]), picture.info["Creation Time"]
    found = readme_picture.asked()
    assert json.loads(json.dumps(readme_picture.inputs(found))) == made, "run python -m tools.readme_picture"
    assert set(made["answers"].values()) == {"yes", "no"}
    assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(when)


def test_pictures_are_redrawn_when_their_sources_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh_pictures.stale() == [], "run python -m tools.fresh_pictures"
    monkeypatch.setattr(fresh_pictures, "LISTING", tmp_path / "none.json")
    assert fresh_pictures.stale() == list(fresh_pictures.GROUPS)


def test_the_tables_name_existing_pages_and_real_rows_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in re.findall(r"\(docs/([a-z-]+)\.md", readme_tables.helps()):
        assert (ROOT / "docs" / f"{name}.md").exists()
    row = {"goal": "g", "table": "quality", "without": "1 %", "with": "2 %", "on": "some weights"}
    for file in readme_tables.RESULTS.glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "real_weights.json").unlink(missing_ok=True)
    (tmp_path / "real_weights.json").write_text(json.dumps([row]))
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    assert (
        readme_tables.helps().splitlines()[2].startswith("| g ([table](docs/quality.md)) | 1 % | 2 % | some weights |")
    )
