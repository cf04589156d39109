"""What the wheel and the source distribution hold, as the build backend of pyproject.toml lists them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "limelight"
wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed (pip install hatchling)")
sdist = pytest.importorskip("hatchling.builders.sdist", reason="hatchling is not installed (pip install hatchling)")


def listed(builder: object) -> set[str]:
    return {Path(f.distribution_path).as_posix() for f in builder.recurse_included_files()}  # type: ignore[attr-defined]


def test_the_wheel_is_the_package_and_nothing_else() -> None:
    found = listed(wheel.WheelBuilder(str(ROOT)))
    own = {
        p.relative_to(PACKAGE.parent).as_posix()
        for p in PACKAGE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert found == own
    assert {"limelight/py.typed", "limelight/report/assets/page.js", "limelight/report/assets/page.html.j2"} <= found
    for kind in ("vision", "audio", "video"):  # the miniatures: weights, tokenizer, the demo's questions
        home = f"limelight/demo/{kind}"
        assert {f"{home}/model.safetensors", f"{home}/tokenizer.json", f"{home}/examples/examples.json"} <= found


def test_the_source_distribution_can_be_tested_and_holds_no_leftovers() -> None:
    found = listed(sdist.SdistBuilder(str(ROOT)))
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
        "constraints.txt",
        "constraints-oldest.txt",
        "tests/conftest.py",
    } <= found
    assert {p.split("/")[0] for p in found if "/" in p} >= {
        "src",
        "tests",
        "recipes",
        "bench",
        "docs",
        "examples",
        "tools",
    }
    for folder in ("node_modules", "__pycache__", "out", "runs", ".venv", "dist"):
        assert not [p for p in found if folder in p.split("/")]


def test_licences_and_commands_are_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all((ROOT / name).is_file() for name in project["license-files"])
    assert project["scripts"] == {"limelight": "limelight.cli.main:app"}
    from limelight import __version__

    assert project["version"] == __version__
