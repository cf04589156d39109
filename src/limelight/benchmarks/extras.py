"""Lazy imports of optional dependencies."""

from __future__ import annotations

import importlib
from typing import Any

from limelight.errors import MissingExtraError


def need(module: str, extra: str) -> Any:
    """Import ``module``; raise ``MissingExtraError`` that names ``limelight[extra]`` when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] == top:
            raise MissingExtraError(top, extra) from error
        raise
