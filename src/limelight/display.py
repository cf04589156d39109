"""Registry of the notebook formatter: the package registers ``limelight.report`` here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Formatter = Callable[[Any], str]
_formatters: list[Formatter] = []


def use(formatter: Formatter) -> None:
    """Register ``formatter`` to produce the HTML of every Relevance and Generation."""
    _formatters[:] = [formatter]


def html(value: Any) -> str | None:
    """Return the HTML of a Relevance or a Generation; None without a formatter (notebooks then show ``repr``)."""
    return _formatters[0](value) if _formatters else None
