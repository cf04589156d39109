"""Terminal output: answers on stdout, everything else on stderr; model loading without log noise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.text import Text

from limelight.cli.options import debugging
from limelight.errors import LimelightError, LimelightWarning
from limelight.report.document import plain_value as plain_value

if TYPE_CHECKING:
    from limelight.cli.options import Loading
    from limelight.models.adapter import Adapter
    from limelight.types import Generation, Relevance, Step

# Loggers of other libraries that warn at import about parts that are not needed here.
NOISY = ("torchao", "torch.utils._pytree", "torch.distributed.elastic.multiprocessing.redirects")
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)


def complain(error: LimelightError) -> None:
    """Print an error's message and hint as plain text."""
    err.print(Text.assemble(("error: ", "bold red"), error.message))
    if error.hint:
        err.print(Text.assemble(("hint: ", "bold"), error.hint))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(Text.assemble(("warning: ", "bold yellow"), str(message)))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, log lines and warnings of other libraries inside the block, and restore them afterwards.

    The library's own warnings are shown. With ``--debug`` nothing is suppressed.
    """
    if debugging():
        yield
        return
    noisy = [logging.getLogger(name) for name in NOISY]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with _quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", LimelightWarning)
            warnings.showwarning = _show_warning
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def load(model: str, loading: Loading, **further: Any) -> Adapter:
    """Call ``limelight.load`` with a status line; downloads from the Hub show their own progress.

    Raises:
        ModelError: also when MODEL is no Hub name and no such folder exists (the Hub is not queried).
    """
    if model.startswith(("/", ".", "~")):
        model = str(Path(model).expanduser())
    if loading.trust_remote_code:
        err.print("[yellow]running code from the checkpoint (--trust-remote-code)[/]")
    with err.status(f"loading {Path(model).name or model} …"):
        from limelight.models.loading import load as load_adapter

        return load_adapter(model, **loading.given, **further)


@contextmanager
def token_progress(total: int, label: str = "") -> Iterator[Callable[[int, Step], None]]:
    """Show a progress bar on stderr with the end of the answer so far; removed when done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
               MofNCompleteColumn(), TextColumn("tokens"), TimeElapsedColumn())  # fmt: skip
    texts: list[str] = []
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label or "prefill", total=total)

        def moved(_: int, step: Step) -> None:
            texts.append(step.text)
            tail = "".join(texts).replace("\n", " ").strip()[-32:]
            bar.update(task, advance=1, description=f"{label} {tail}".strip())

        yield moved


@contextmanager
def row_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, updated by calling it with (rows done, total rows); removed when done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
               MofNCompleteColumn(), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def coloured(generation: Generation) -> Text:
    """Return the answer; on a terminal, each word's background shows its media share (else the meter's contribution)."""
    from limelight.report.words import perceptual, word_flagged, word_parts, words

    text = Text()
    for word in words(generation):
        if word.space and text.plain:
            text.append(" ")
        share = perceptual(word_parts(generation, word))
        flagged = word_flagged(generation, word)
        text.append(
            "⚑" if flagged and out.is_terminal else "", Style(bold=True, color="red")
        )  # a file gets the words alone
        text.append(word.text, _style(share, flagged))
    return text if text.plain else Text(generation.text)


def legend(generation: Generation) -> Text | None:
    """Return what the marks and colours of :func:`coloured` mean; None where nothing is marked."""
    from limelight.report.words import SHARES, known_parts

    which = known_parts(generation)
    if not which or not out.is_terminal:
        return None
    what = "the word's relevance" if which == SHARES else "the word's logit"
    text = Text("shade: the media's part of " + what + "  ", style="dim")
    for share in (0.0, 0.5, 1.0):
        text.append(f" {share:.0%} ", _style(share, False))
    if any(s.flagged for s in generation.steps):
        text.append("  ⚑ not supported by the media", style="dim")
    return text


def decision_line(found: Relevance, template: Collection[int] = ()) -> Text:
    """Return what decides between two answers in one line, and how much of the evidence the media have."""
    from limelight.report import heat
    from limelight.report.words import line

    share = heat.media_share(found)
    return Text(f"why {line(found, template)}; the media have {share:.0%} of the evidence ({heat.named(share)})")


def _style(share: float | None, flagged: bool) -> Style:
    if share is None:
        return Style(underline=flagged)
    shade = tuple(round(a + (b - a) * share) for a, b in zip((38, 42, 48), (10, 150, 138), strict=True))
    return Style(color="white", bgcolor=f"rgb({shade[0]},{shade[1]},{shade[2]})", underline=flagged)


def parts_bar(generation: Generation) -> Text | None:
    """Return the answer's shares as a bar; where no relevance was computed, the meter's contributions, labelled as such."""
    if generation.shares():
        return bar(generation.shares())
    return (
        bar(generation.contributions()).append(" of the logits, by the meter") if generation.contributions() else None
    )


def bar(shares: dict[str, float], width: int = 40) -> Text:
    """Return modality shares as a bar with numbers."""
    colours = {"text": "grey50", "image": "cyan", "video": "magenta", "audio": "yellow"}
    text = Text()
    for modality, share in shares.items():
        text.append("█" * round(width * share), colours.get(modality, "white"))
    return text.append("  " + ", ".join(f"{share:.0%} {modality}" for modality, share in shares.items()))
