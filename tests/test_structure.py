"""Structure of the repository: layering, no import cycles, file lengths, public names, and imports without side effects."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import pytest

import limelight
from tests import sources

ROOT = "limelight"
REPOSITORY = Path(__file__).parents[1]
# package -> packages it may import from (itself always).
ALLOWED: dict[str, set[str]] = {
    "types": {"display", "errors", "regions", "thinking"},
    "display": set(),
    "regions": {"errors"},
    "errors": set(),
    "user_cache_dir": set(),
    "calibration": {"user_cache_dir", "errors"},
    "compat": {"errors"},
    "thinking": {"errors"},
    "media": {"types", "errors", "compat"},
    "models": {"types", "errors", "compat", "media", "user_cache_dir", "calibration"},
    "relevance": {"types", "errors", "compat", "media", "models"},
    "grounding": {"types", "errors", "media", "models", "relevance", "calibration"},
    "decoding": {
        "types",
        "display",
        "errors",
        "compat",
        "thinking",
        "media",
        "models",
        "relevance",
        "grounding",
        "calibration",
    },
    "auditing": {
        "types",
        "errors",
        "thinking",
        "media",
        "models",
        "relevance",
        "grounding",
        "calibration",
        "decoding",
        "benchmarks",
        "report",
    },
    "benchmarks": {"types", "errors", "thinking", "media"},
    "engines": {"errors", "decoding"},
    "report": {"types", "errors", "media", "calibration"},
    "demo": {"types", "errors", "media", "models", "relevance", "grounding", "decoding", "report"},
    "app": {"types", "errors", "media", "models", "relevance", "grounding", "decoding", "report"},
    "calibrating": {
        "types",
        "errors",
        "calibration",
        "models",
        "decoding",
        "benchmarks",
        "report",
        "auditing",
    },
    "golden": {"types", "errors", "media", "models", "relevance", "grounding", "decoding"},
    "cli": {
        "types",
        "calibration",
        "calibrating",
        "errors",
        "compat",
        "thinking",
        "media",
        "models",
        "relevance",
        "grounding",
        "decoding",
        "auditing",
        "benchmarks",
        "report",
        "demo",
        "server",
        "app",
    },
    "server": {
        "types",
        "errors",
        "media",
        "models",
        "relevance",
        "grounding",
        "decoding",
        "auditing",
        "benchmarks",
        "report",
        "demo",
    },
}
# Exceptions from the layering; "" is the package itself, by its public names.
EXCEPTIONS = {
    "limelight.benchmarks.tasks.demo_vision": {"demo"},  # the miniatures' synthetic data, without their models
    "limelight.benchmarks.tasks.demo_audio": {"demo"},
    "limelight.benchmarks.tasks.demo_video": {"demo"},
    "limelight.benchmarks.lmms_eval_plugin": {""},  # loaded by lmms-eval, which passes no model
    "limelight.calibrating.fit": {""},  # the version, stored in calibrations
    "limelight.__main__": {"cli"},
}
WORLDS = (  # modules of demo that benchmarks may import
    *("scenes", "questions", "language"),
    *("sounds", "synthesis", "sound_questions", "sound_language"),
    *("films", "film_questions", "film_language"),
)
HEAVY = {"benchmarks": {"torch", "transformers"}, "report": {"transformers"}, "errors": {"torch", "transformers"}}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the whole package."""
    found = {}
    for path in sources.FILES:
        parts = (ROOT, *path.relative_to(sources.SRC).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def tree_of(name: str) -> ast.Module:
    return sources.tree_of(MODULES[name])


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """(imported module, at the top level and not for typing only) of one module; imports in functions included."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = tree_of(name)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        at_import = id(node) not in typing_only | late
        if isinstance(node, ast.Import):
            found += [(alias.name, at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, *([node.module] if node.module else [])])
            found += [(f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base, at_import) for a in node.names]
    return tuple(found)


def package_of(name: str) -> str:
    """Return the package or module directly below limelight: models, relevance, types ..."""
    return name.split(".")[1] if "." in name else ""


def own_imports(name: str) -> list[tuple[str, bool]]:
    return [(m, top) for m, top in imports(name) if m.split(".")[0] == ROOT]


def test_imports_go_one_way() -> None:
    for name in filter(package_of, MODULES):
        here = package_of(name)
        assert here in ALLOWED or name in EXCEPTIONS, f"{here} is new: add to ALLOWED what it may import"
        allowed = ALLOWED.get(here, set()) | EXCEPTIONS.get(name, set()) | {here}
        for target, _ in own_imports(name):
            there = package_of(target)
            assert there in allowed or (not there and here in ("cli", "server")), f"{name} imports {target}"
            if here == "benchmarks" and there == "demo":
                assert target.endswith(("demo", *WORLDS)), f"{name} imports {target}"


@pytest.mark.parametrize("name", WORLDS)
def test_the_miniatures_worlds_need_no_model(name: str) -> None:
    assert {package_of(t) for t, _ in own_imports(f"limelight.demo.{name}")} <= {"demo", "types", "errors"}
    assert not {t.split(".")[0] for t, _ in imports(f"limelight.demo.{name}")} & {"torch", "transformers"}


def test_light_packages_import_nothing_heavy() -> None:
    for name in (m for m in MODULES if package_of(m) in HEAVY):
        for target, at_import in imports(name):
            heavy = target.split(".")[0] in HEAVY[package_of(name)]
            late = package_of(name) == "benchmarks" and not at_import and "torch" in target
            assert not heavy or late, f"{name}: {target}"


def typed_only(name: str) -> set[str]:
    """Modules that are imported under ``if TYPE_CHECKING:`` and nowhere else in the file."""
    blocks = [n for n in ast.walk(tree_of(name)) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    inside = {id(inner) for block in blocks for inner in ast.walk(block)}
    froms = [n for n in ast.walk(tree_of(name)) if isinstance(n, ast.ImportFrom)]
    typed, real = ({n.module for n in froms if (id(n) in inside) is which} for which in (True, False))
    return {m for m in typed - real if m}


def test_there_is_no_import_cycle() -> None:
    """Among modules, imports inside functions included (those for typing alone are not)."""
    graph = {n: {t for t, _ in own_imports(n) if t in MODULES and t != n} - typed_only(n) for n in MODULES}
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> None:
        state[node] = 1
        path.append(node)
        for target in sorted(graph[node]):
            assert state.get(target) != 1, f"cycle: {' -> '.join([*path[path.index(target) :], target])}"
            if target not in state:
                visit(target)
        path.pop()
        state[node] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name)


def test_packages_do_not_depend_on_one_another_in_a_circle() -> None:
    """Packages form a partial order, imports inside functions and for typing included."""
    edges = {
        (package_of(n), package_of(t))
        for n in MODULES
        for t, _ in own_imports(n)
        if package_of(n) and package_of(t) and package_of(n) != package_of(t)
    }
    assert not {(a, b) for a, b in edges if (b, a) in edges}


def test_no_file_is_too_long() -> None:
    folders = (sources.SRC, *(REPOSITORY / name for name in ("tests", "bench", "recipes", "tools", "examples")))
    lines = {path: len(path.read_text().splitlines()) for folder in folders for path in folder.rglob("*.py")}
    assert len(lines) > 700 and not {str(path): n for path, n in lines.items() if n >= 400}


def test_public_names_are_sorted_and_all_there() -> None:
    assert limelight.__all__ == sorted(limelight.__all__)
    for name in limelight.__all__:
        assert not isinstance(getattr(limelight, name), types.ModuleType)
    assert (
        {"Adapter", "attribute", "generate", "load", "strategy", "wrap"}
        <= set(limelight.__all__)
        == set(dir(limelight))
    )
    with pytest.raises(AttributeError, match="nothing"):
        _ = limelight.nothing


def test_every_all_is_true() -> None:
    for name in MODULES:
        for node in tree_of(name).body:
            if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
                names = ast.literal_eval(node.value)
                assert len(set(names)) == len(names)
                loaded = importlib.import_module(name)
                assert all(hasattr(loaded, n) for n in names), name


LIGHT = """
import sys
import limelight
from limelight import errors, types
loaded = {"torch", "transformers", "numpy", "PIL"} & set(sys.modules)
assert not loaded, loaded
assert limelight.__version__
"""

NOTHING_HAPPENS = """
import torch, transformers
from transformers import AttentionInterface, AttentionMaskInterface
def state():
    return (
        set(AttentionInterface._global_mapping), set(AttentionMaskInterface._global_mapping), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.nn.Module.__call__, torch.nn.functional.softmax,
        transformers.GenerationMixin.generate,
    )
before = state()
import limelight
for name in limelight.__all__:
    getattr(limelight, name)
assert state() == before, "something happened at import time"
assert "limelight" not in before[0]
"""


@pytest.mark.parametrize("script", [LIGHT, NOTHING_HAPPENS], ids=["light", "nothing happens"])
def test_importing_costs_and_changes_nothing(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_no_assert_decides_anything() -> None:
    for name in MODULES:
        found = [n.lineno for n in ast.walk(tree_of(name)) if isinstance(n, ast.Assert)]
        assert not found, f"{name}: assert in line {found}"
