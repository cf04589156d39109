"""The built docs: the command line's page is what the commands say, the reference names everything, mkdocs has no warning."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import cli_page

import limelight

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_page_is_up_to_date() -> None:
    assert cli_page.TARGET.read_text(encoding="utf-8") == cli_page.page(), "run python -m tools.cli_page"


def test_the_reference_holds_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").splitlines()
    told = {line.removeprefix("::: ").strip() for line in page if line.startswith("::: ")}
    missing = {n for n in limelight.__all__ if f"limelight.{n}" not in told}
    assert not missing
    for path in told:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_mkdocs_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install 'limelight[docs]')")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "reference.html").read_text(encoding="utf-8")
    assert "Answer <code>messages</code> with a decoding strategy" in page
    assert not re.findall(r":(?:class|func|mod|meth|data):", page)
    assert "doctest" not in page
    assert 'class="md-search__input"' in page  # in the header
    for built in tmp_path.glob("*.html"):
        text = built.read_text(encoding="utf-8")
        assert "fonts.googleapis.com" not in text
        assert 'src="http' not in text


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_lists_have_a_blank_line_in_front(path: Path) -> None:
    """Without one, Markdown makes a single paragraph of the list."""
    item, code, inside, before = re.compile(r"([-*]|\d+\.) "), False, False, ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.startswith("```")
        if not line.strip():
            inside = False
        elif not code and item.match(line):
            assert inside or not before.strip() or before.startswith("<!--"), f"{path.name}:{number}"
            inside = True
        before = line
