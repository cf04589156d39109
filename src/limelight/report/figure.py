"""Shared parts of the figures: modality bars, top words, title, saving; matplotlib objects without pyplot state."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from limelight.errors import SettingError
from limelight.report import heat
from limelight.report.words import text_words
from limelight.types import Relevance

# White text is readable on each (contrast at least 4.5).
MODALITY_COLOURS = {"text": "#666c76", "image": "#0f766e", "video": "#7c3aed", "audio": "#b45309"}
FORMATS = frozenset({".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp"})


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write(text: Any) -> Any:
    """Disable math parsing of a text: words may contain dollar signs."""
    text.set_parse_math(False)
    return text


def headline(relevance: Relevance, word: str | None, strategy: str = "") -> str:
    by = f" ({strategy})" if strategy else ""
    if relevance.against is not None:
        return f"Why “{relevance.explains}”   difference of the logits {relevance.logit:+.2f}"
    target = (word if word is not None else relevance.target_token).strip() or f"token {relevance.target}"
    return f"Where “{target}” comes from{by}   logit {relevance.logit:.2f}"


def share_bar(axes: Any, relevance: Relevance) -> None:
    """Draw modality shares as one stacked bar: each modality's part of ``sum |R|``."""
    start = 0.0
    for modality, share in relevance.shares().items():
        axes.barh(0, share, left=start, height=1, color=MODALITY_COLOURS[modality])
        label = f"{modality} {share:.0%}"
        if share > 0.016 * len(label):
            axes.text(start + share / 2, 0, label, ha="center", va="center", fontsize=8, color="white")
        start += share
    axes.set_xlim(0, max(start, 1e-9))
    axes.set_axis_off()


def top_words(axes: Any, relevance: Relevance, count: int, full: float, template: Collection[int] = ()) -> None:
    """Draw the words of the text with the largest ``|R|`` as signed bars, without positions of the chat template."""
    rows = text_words(relevance, template)[:count][::-1]
    values = [score for _, score in rows]
    colours = ["#{:02x}{:02x}{:02x}".format(*(heat.SUPPORTS if v >= 0 else heat.AGAINST)) for v in values]
    axes.barh(range(len(rows)), values, color=colours, alpha=heat.OPACITY, height=0.7)
    axes.axvline(0, color="#444", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [shown(text) for text, _ in rows], fontsize=8)
    for label in axes.get_yticklabels():
        write(label)
    axes.set_xlim(-max(full, *map(abs, values), 1e-9) * 1.05, max(full, *map(abs, values), 1e-9) * 1.05)
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlabel("words of the text with the largest relevance (logit)", fontsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def shown(token: str) -> str:
    """Return a token's text with visible white space, truncated to 24 characters."""
    text = token.replace("\n", "⏎").strip() or repr(token)
    return text if len(text) <= 24 else text[:23] + "…"


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure in the format of the file's extension (png, pdf, svg, jpg, webp).

    Raises:
        SettingError: the extension is not an image format, or the folder does not exist.
    """
    path = checked(path)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # a word in a script that the font does not cover
        figure.savefig(path)
    return path


def checked(path: str | Path, formats: frozenset[str] = FORMATS) -> Path:
    """Check early that a path can be written to.

    Raises:
        SettingError: see :func:`save`.
    """
    path = Path(path)
    if path.suffix.lower() not in formats:
        raise SettingError(
            f"cannot write {path.name!r}", hint=f"use one of the extensions {', '.join(sorted(formats))}"
        )
    if not path.parent.is_dir():
        raise SettingError(f"there is no folder {str(path.parent)!r}", hint="create it first")
    return path
