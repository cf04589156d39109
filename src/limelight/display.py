"""Views of results: notebook HTML, figures, tables and plain values. The package registers who makes them (``use``), so
that the data types need neither pandas nor matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Formatter = Callable[..., Any]
_formatters: dict[str, Formatter] = {}


def use(formatter: Formatter | None = None, **others: Formatter) -> None:
    """Register what makes the views: ``html`` (the first argument), ``text``, ``plot``, ``document``, ``table`` and ``page``.

    Each is called with the Relevance, Generation or Comparison first.
    """
    _formatters.clear()
    _formatters.update({**({} if formatter is None else {"html": formatter}), **others})


def html(value: Any) -> str | None:
    """Return a result's HTML; None without a formatter (notebooks then show ``repr``)."""
    return _formatters["html"](value) if "html" in _formatters else None


class Shown:
    """A result that notebooks display."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        return html(self)


class Tabular(Shown):
    """A result with a table."""

    __slots__ = ()

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: of a Relevance one row per position, of a Generation one row per token.

        A Relevance has the columns ``position``, ``token``, ``modality``, ``relevance`` and ``template`` (part of the chat
        template); a Generation those of a step: ``token``, ``text``, ``word``, ``logprob``, ``grounding``, ``flagged``,
        ``intervened``, and ``share_*`` and ``contribution_*`` for each modality.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return _formatters["table"](self)


class Plotted(Tabular):
    """A result that can be drawn as a figure."""

    __slots__ = ()

    def __str__(self) -> str:
        """What was explained, each modality's part in logits, and the words with the largest relevance, in one line."""
        return str(_formatters["text"](self)) if "text" in _formatters else repr(self)

    def plot(self, media: Any = None, **settings: Any) -> Any:
        """Draw the relevance over its image, waveform or frames, and return the matplotlib Figure.

        Args:
            media: the image, images, or :class:`limelight.report.media.Media` to draw on (``media=prompt.media`` of the
                Prompt that was attributed works too); without it the heat is drawn as a grid.
            settings: of :func:`limelight.report.overlay.overlay`, ``waveform`` or ``contact_sheet``, such as ``path=``.

        Raises:
            SettingError: the relevance has no image, audio or video.
        """
        return _formatters["plot"](self, media, **settings)


class Documented(Tabular):
    """A result that can be written as JSON, or as a page."""

    __slots__ = ()

    def to_dict(self, *, scores: bool = False) -> dict[str, Any]:
        """Return plain values for JSON: text, shares, sentences, words and steps, as ``limelight generate --json`` prints.

        Args:
            scores: also the relevance of every position, with the prompt's tokens and spans.
        """
        found: dict[str, Any] = _formatters["document"](self, scores=scores)
        return found

    def save(self, path: str | Path) -> Path:
        """Write one self-contained HTML page with the heat map of each word; see :func:`limelight.report.page.save_page`.

        Raises:
            SettingError: the name does not end in .html, or its folder does not exist.
        """
        written: Path = _formatters["page"](path, self)
        return written
