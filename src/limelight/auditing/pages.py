"""HTML pages of an audit's worst answers, and their index."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limelight.auditing.audited import Audit
from limelight.auditing.auditor import finished
from limelight.auditing.rows import Row
from limelight.benchmarks.results import Results
from limelight.benchmarks.rowlog import write_bytes, writing
from limelight.calibration import spoken
from limelight.decoding.explain import explained
from limelight.errors import LimelightError
from limelight.models.adapter import Adapter
from limelight.report.audit_index import Fact, IndexRow, render_index
from limelight.report.media import Media
from limelight.report.page import save_page
from limelight.report.payload import Case
from limelight.report.pictures import data_url
from limelight.report.words import word_flagged, words

FOLDER = "pages"
THUMBNAIL = 176


def worst(audits: Sequence[Audit], count: int) -> list[Audit]:
    """Return the answers with the most flagged words, then the lowest margin, then the lowest log-probability."""

    def key(audit: Audit) -> tuple[float, float, float]:
        logprob = audit.summary["logprob"]
        return -len(audit.flagged), audit.margin or 0.0, 0.0 if logprob is None else logprob

    return sorted(audits, key=key)[:count]


def write_pages(
    folder: Path,
    audits: Sequence[Audit],
    results: Results,
    count: int,
    opened: Callable[[Row], Row],
    adapter: Callable[[], Adapter] | None = None,
) -> Path:
    """Write ``index.html`` and the pages of the worst ``count`` answers, replacing existing pages.

    Args:
        opened: decodes the media of a row. An answer whose media no longer exist is shown without them.
        adapter: the model, for relevance maps; None: pages only show the meter's scores.
    """
    pages = folder / FOLDER
    with writing(pages):
        shutil.rmtree(pages, ignore_errors=True)
        pages.mkdir(parents=True)
    rows = []
    for number, audit in enumerate(worst(audits, count), 1):
        shown = audit
        with contextlib.suppress(LimelightError):
            shown = replace(audit, row=opened(audit.row))
        target = pages / f"{number:03}-{re.sub(r'[^A-Za-z0-9._-]+', '-', audit.row.name)[:60]}.html"
        with writing(target):
            save_page(target, case_of(shown, adapter), title=f"Audit of {audit.row.name}")
        rows.append(_row(shown, f"{FOLDER}/{target.name}"))
    failed = [(name, error["message"]) for name, error in results.run.errors.items()]
    index = render_index(
        rows,
        total=len(audits),
        facts=facts(results),
        failed=failed,
        title=f"Audit of {results.run.settings['file']}",
        note=f"Which words of these answers the image, audio and video support, according to {results.run.settings['model']}.",
        rule=spoken(results.run.settings["flag"]),
    )
    path = folder / "index.html"
    write_bytes(path, index.encode("utf-8", "backslashreplace"))
    return path


def case_of(audit: Audit, adapter: Callable[[], Adapter] | None = None) -> Case:
    """Return the page contents for one answer; with ``adapter``, including a relevance map of every word."""
    answer = audit.generation
    if adapter is not None:
        model = adapter()
        answer = explained(model, replace(answer, prompt=finished(model, audit.row).prompt))
    flagged = ", ".join(w.text for w in audit.flagged)
    note = f"Flagged: {flagged}" if flagged else "No word is flagged."
    return Case([answer], media=media_of(audit), title=audit.row.name, question=audit.row.question, note=note)


def media_of(audit: Audit) -> Media:
    """Return the decoded media of an answer."""
    return Media.of(replace(audit.generation.prompt, media=_decoded(audit.row)))


def _decoded(row: Row) -> dict[str, Any]:
    return {k: v for k, v in row.media.items() if not any(isinstance(x, (str, Path, dict)) for x in v)}


def facts(results: Results) -> list[Fact]:
    """Return the summary's metrics with their intervals."""
    found = []
    for name, metric in results.metrics.items():
        if metric.value != metric.value:
            continue
        whole, scale = metric.unit == "count", 100 if metric.unit == "%" else 1
        digits, sign = (0, "") if whole else ((1, " %") if metric.unit == "%" else (2, ""))
        bounds = (
            ""
            if whole or metric.low != metric.low
            else f"[{scale * metric.low:.{digits}f}, {scale * metric.high:.{digits}f}]"
        )
        found.append(Fact(name, f"{scale * metric.value:.{digits}f}{sign}", bounds))
    return found


def _row(audit: Audit, page: str) -> IndexRow:
    numbers = audit.summary
    media = media_of(audit)
    picture = data_url(media.pictures[0], THUMBNAIL) if media.pictures else ""
    if not picture and media.videos and media.frames(0):
        picture = data_url(media.frames(0)[0], THUMBNAIL)
    kinds = ", ".join(audit.row.media) or "no media"
    flagged = f"{numbers['flagged_words']} of {numbers['words']}"
    margin, grounding, logprob = (_number(numbers[k]) for k in ("margin", "grounding", "logprob"))
    return IndexRow(
        audit.row.name, audit.row.question, pieces(audit), flagged, margin, grounding, logprob, picture, kinds, page
    )


def pieces(audit: Audit) -> list[tuple[str, bool]]:
    """Split the answer into pieces of text, each flagged or not."""
    answer, found = audit.answer, list[tuple[str, bool]]()
    for word in words(answer):
        if word.space and found:
            found.append((" ", False))
        found.append((word.text, word_flagged(answer, word)))
    return found or [(audit.text, False)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
