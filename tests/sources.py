"""The package's own source files, read and parsed once per process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import limelight

SRC = Path(limelight.__file__).parent
FILES = sorted(SRC.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def at(path: Path, node: ast.stmt | ast.expr) -> str:
    """Where a node stands, for messages."""
    return f"{path.relative_to(SRC)}:{node.lineno}"
