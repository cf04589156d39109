"""The tree of errors is the one drawn in the docstring, and every error raised says what to do next."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from limelight import errors
from limelight.errors import InputError, LimelightError, MissingExtraError, ModelError, SettingError
from tests.sources import FILES, SRC, at, tree_of

CLASSES = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, LimelightError)}


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(\s*[│├└─\s]*)([A-Z]\w+)", line)
        if not found or found[2] not in CLASSES:
            continue
        depth, name = len(found[1]), found[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        drawn[name] = stack[-1][1] if stack else ""
        stack.append((depth, name))
    real = {n: next((b.__name__ for b in c.__bases__ if b.__name__ in CLASSES), "") for n, c in CLASSES.items()}
    assert drawn == real


def test_a_hint_is_shown_behind_the_message() -> None:
    error = LimelightError("expected 3, got 4", hint="pass 3")
    assert (error.message, error.hint) == ("expected 3, got 4", "pass 3")
    assert str(error) == "expected 3, got 4\n  hint: pass 3"
    assert str(LimelightError("bare")) == "bare"


def test_what_else_they_are() -> None:
    """So that callers who know nothing of the tree catch them."""
    assert issubclass(SettingError, ValueError)
    assert issubclass(SettingError, InputError)
    assert issubclass(MissingExtraError, ImportError)
    assert not issubclass(ModelError, InputError)
    missing = MissingExtraError("soxr", "audio")
    assert "soxr" in str(missing)
    assert "limelight[audio]" in missing.hint


def raised() -> Iterator[tuple[Path, ast.Raise, str, ast.Call]]:
    """Every ``raise Name(...)`` of the package."""
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                yield path, node, node.exc.func.id, node.exc


def test_every_error_that_is_raised_has_a_hint() -> None:
    seen = 0
    for path, node, name, call in raised():
        if name not in CLASSES or name == "MissingExtraError":
            continue
        seen += 1
        hints = [k.value for k in call.keywords if k.arg == "hint"]
        assert hints, f"{at(path, node)} raises {name} without a hint"
        assert not (isinstance(hints[0], ast.Constant) and not hints[0].value), f"{at(path, node)}: empty hint"
    assert seen > 100


def test_bare_builtin_errors_are_not_raised() -> None:
    """Whoever catches LimelightError catches what the library says no to. Not looked at: the miniatures' worlds, plain
    functions of recipes too, and the server, where pydantic's validators raise ValueError."""
    builtin = {"ValueError", "TypeError", "RuntimeError", "KeyError", "Exception", "OSError", "IndexError"}
    looked_at = [
        (p, node, name) for p, node, name, _ in raised() if p.relative_to(SRC).parts[0] not in ("demo", "server")
    ]
    assert not [f"{at(path, node)} raises {name}" for path, node, name in looked_at if name in builtin]
