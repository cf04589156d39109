"""How results show themselves in a notebook: ``limelight.report`` draws them, registered here by the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Formatter = Callable[[Any], str]
_formatters: list[Formatter] = []


def use(formatter: Formatter) -> None:
    """Let ``formatter`` write the HTML of every Relevance and Generation from now on."""
    _formatters[:] = [formatter]


def html(value: Any) -> str | None:
    """The HTML of a Relevance or a Generation; None (notebooks then show ``repr``) without a formatter."""
    return _formatters[0](value) if _formatters else None
