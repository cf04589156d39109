"""The index of an audit: its numbers, and its worst answers with their flagged words marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limelight.report.page import template


@dataclass(frozen=True)
class Fact:
    """A number of the whole audit, and its interval."""

    name: str
    value: str
    range: str = ""


@dataclass(frozen=True)
class IndexRow:
    """One answer of the index.

    Attributes:
        pieces: (text, flagged) that make up the answer.
        picture: a data URL; ``media``: what there is instead. ``page``: a link.
    """

    name: str
    question: str
    pieces: Sequence[tuple[str, bool]]
    flagged: str
    margin: str
    grounding: str
    logprob: str
    picture: str = ""
    media: str = ""
    page: str = ""


def render_index(
    rows: Sequence[IndexRow],
    *,
    total: int,
    facts: Sequence[Fact] = (),
    failed: Sequence[tuple[str, str]] = (),
    title: str = "Audit",
    note: str = "",
    rule: str = "",
) -> str:
    """The index as text; it holds everything it needs but the pages that it links to.

    Args:
        rule: of the flag, in words. ``total``: how many answers were audited. ``failed``: (name, message) of those that could not be.
    """
    return str(
        template("audit.html.j2").render(
            title=title, note=note, rule=rule, facts=facts, rows=rows, total=total, failed=failed
        )
    )
