"""Every Python block of README and docs runs, and so does every example; commands shown exist."""

import re
import runpy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

import limelight

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(p.read_text())]
SERVED = "http://127.0.0.1:8000"  # where a page says that `limelight serve demo-vision` listens
HEARD = 'model="demo-audio", file='  # tests/server/test_spoken.py runs that block against a server that hears


def test_every_page_with_snippets_is_found() -> None:
    assert {
        "README",
        "how-to",
        "extend",
        "getting-started",
        "app",
        "server",
        "benchmarks",
        "audit",
        "methods",
        "recipes",
        "stability",
    } <= {p.stem for p in PAGES}


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[[], str]]:
    """Starts the server that a page talks to, once, when a page does."""
    with ExitStack() as stack:

        @cache
        def start() -> str:
            from limelight.server.state import ServerConfig
            from tests.server.conftest import served

            return stack.enter_context(served(limelight.load("demo-vision"), ServerConfig("demo-vision"))).url

        yield start


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that looks like the repository; what is written into it does not land there."""
    for path in ROOT.iterdir():
        if path.name not in ("out", "runs") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run_in_order(
    page: Path, monkeypatch: pytest.MonkeyPatch, served: Callable[[], str], home: Path
) -> None:
    monkeypatch.chdir(home)
    blocks = [b for b in BLOCK.findall(page.read_text()) if HEARD not in b]
    assert blocks
    scope: dict[str, object] = {"__name__": page.stem}
    for block in blocks:
        if SERVED in block:
            pytest.importorskip("openai", reason="the openai client is not installed")
            pytest.importorskip("uvicorn", reason="the extra `server` is not installed")
            block = block.replace(SERVED, served())
        exec(compile(block, str(page), "exec"), scope)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(
    example: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from limelight.cli.main import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = re.findall(r"^    limelight ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown
    assert set(shown) <= known


def test_links_resolve() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for target, anchor in re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text()):
            other = page if not target else page.parent / target
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", h.lower()).strip()) for h in headings}
            assert anchor in slugs, f"{page.name} links to {target}#{anchor}"
