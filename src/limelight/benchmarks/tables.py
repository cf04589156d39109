"""Tables of runs for the terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import StringIO
from typing import Any, Literal, get_args

from limelight.benchmarks.compare import Difference, compare, differing
from limelight.benchmarks.manifest import differences
from limelight.benchmarks.results import Results, Run
from limelight.benchmarks.scorers.measure import Metric, Unit
from limelight.errors import SettingError

Format = Literal["terminal", "markdown", "latex", "html"]


@dataclass(frozen=True)
class Table:
    """A table of plain text cells with a header, a title and notes."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default=())


def render(tables: Iterable[Table], form: Format = "terminal", *, width: int | None = None) -> str:
    """Render tables as text in one of the four formats."""
    writers = {"terminal": lambda t: _terminal(t, width), "markdown": _markdown, "latex": _latex, "html": _html}
    if form not in writers:
        raise SettingError(f"unknown table format {form!r}", hint=f"one of {', '.join(get_args(Format))}")
    return "\n\n".join(writers[form](t) for t in tables) + "\n"


def number(value: float, unit: Unit = "%", signed: bool = False) -> str:
    """Format a number: percentages with one decimal, counts as integers, anything else with three digits."""
    if math.isnan(value):
        return "-"
    if unit == "count":
        return f"{value:+.0f}" if signed else f"{value:.0f}"
    shown = f"{100 * value:.1f}" if unit == "%" else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
    return f"+{shown}" if signed and value > 0 else shown


def cell(metric: Metric | None, intervals: bool = True) -> str:
    """Format a metric with its interval: ``87.9 [86.7, 89.1]``."""
    if metric is None:
        return ""
    text = number(metric.value, metric.unit)
    if not intervals or math.isnan(metric.low) or metric.unit == "count":
        return text
    return f"{text} [{number(metric.low, metric.unit)}, {number(metric.high, metric.unit)}]"


def side_by_side(
    results: Sequence[Results],
    *,
    metrics: Sequence[str] = (),
    everything: bool = False,
    intervals: bool = True,
    names: Sequence[str] = (),
) -> Table:
    """Build a table with runs of one task as columns and metrics as rows.

    Args:
        metrics: patterns (fnmatch) of the metrics to show; the task's headline when empty.
        everything: show all of them.
        names: labels of the runs.
    """
    task = results[0].run.task
    patterns = tuple(metrics) or (("*",) if everything else task.headline)
    shown = [m for m in dict.fromkeys(m for r in results for m in r.metrics) if _shown(m, patterns, results)]
    header = ("", *(names or labels([r.run for r in results])))
    rows = [(m, *(cell(r.metrics.get(m), intervals) for r in results)) for m in shown]
    rows.append(("rows answered", *(f"{len(r.run.records)} of {r.run.total}" for r in results)))
    for name, values in (("tokens/s", [r.run.speed for r in results]), ("peak GB", [r.run.peak_gb for r in results])):
        if not all(map(math.isnan, values)):
            rows.append((name, *(number(v, "") for v in values)))
    lost = {
        "rows failed": [len(r.run.errors) for r in results],
        "rows that could not be scored": [len(r.unscored) for r in results],
        "invalid rows skipped": [len(r.run.bad_rows) for r in results],
        "answers with reasoning only": [r.run.thoughts()["without_an_answer"] for r in results],
    }
    rows += [(name, *map(str, counts)) for name, counts in lost.items() if any(counts)]
    return Table(_title(results), header, tuple(rows), tuple(_notes(results)))


def paired_table(
    baseline: Run, other: Run, parser: str = "", *, metrics: Sequence[str] = (), resamples: int = 1000, **options: Any
) -> Table:
    """Build a table of one run against a baseline, paired by question."""
    patterns = tuple(metrics) or baseline.task.headline
    found = [d for d in compare(baseline, other, parser, resamples=resamples, **options) if _matches(d.name, patterns)]
    first, second = labels([baseline, other])
    header = ("", first, second, "difference", "p", "only " + first, "only " + second, "McNemar p", "n")
    notes = ("difference and p: paired bootstrap over clusters; only: units that only one run answered correctly",)
    return Table(f"{other.task.name}: {second} minus {first}", header, tuple(_paired_row(d) for d in found), notes)


def differing_table(baseline: Run, other: Run, parser: str = "", *, limit: int | None = 20, **options: Any) -> Table:
    """Build a table of the questions that two runs answered differently."""
    pairs = differing(baseline, other, parser, **options)
    first, second = labels([baseline, other])
    rows = [(p.verdict, p.id, _short(p.prompt), _short(str(p.target)), _short(p.a), _short(p.b)) for p in pairs[:limit]]
    counts = {v: sum(p.verdict == v for p in pairs) for v in ("fixed", "broken", "same")}
    notes = [f"{counts['fixed']} fixed, {counts['broken']} broken, {counts['same']} worded differently"]
    notes += [f"{len(rows)} of {len(pairs)} shown"] if len(rows) < len(pairs) else []
    return Table(
        f"{other.task.name}: answers that differ, {first} and {second}",
        ("", "id", "prompt", "target", first, second),
        tuple(rows),
        tuple(notes),
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """Return short names of runs: the folder name, with as many parents as needed to make them unique."""
    parts = [r.path.resolve().parts for r in runs]
    for depth in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _shown(name: str, patterns: Sequence[str], results: Sequence[Results]) -> bool:
    # unparsed and empty answers are never hidden
    lost = name.rpartition("/")[2] in ("unparsed", "empty", "answers without relevance")
    # metrics requested by an option of the run are not in any task's headline
    requested = name.startswith("faithfulness/")
    return (
        _matches(name, patterns)
        or (requested and patterns == results[0].run.task.headline)
        or (lost and any(name in r.metrics and r.metrics[name].value > 0 for r in results))
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _title(results: Sequence[Results]) -> str:
    parsers = dict.fromkeys(r.parser for r in results if r.parser)
    return results[0].run.task.name + (f", parser {' / '.join(parsers)}" if parsers else "")


def _notes(results: Sequence[Results]) -> list[str]:
    notes = []
    if any(m.low == m.low for r in results for m in r.metrics.values()):
        notes.append("[low, high]: 95 % bootstrap interval over clusters; rates in percent")
    first = results[0].run
    for other in (r.run for r in results[1:]):
        keys = {
            k.partition(".")[0]
            for k, _, _ in differences(first.manifest["identity"], other.manifest["identity"])
            if not k.startswith(("settings", "shards"))
        }
        if keys:
            notes.append(f"NOT COMPARABLE: {' and '.join(labels([first, other]))} differ in {', '.join(sorted(keys))}")
    for r in results:
        if not r.run.complete:
            notes.append(f"{labels([x.run for x in results])[results.index(r)]} is incomplete")
    return notes


def _paired_row(d: Difference) -> tuple[str, ...]:
    gap = number(d.difference, d.unit, signed=True)
    if not math.isnan(d.low):
        gap += f" [{number(d.low, d.unit, signed=True)}, {number(d.high, d.unit, signed=True)}]"
    return (
        d.name,
        number(d.a, d.unit),
        number(d.b, d.unit),
        gap,
        _p(d.p),
        "" if d.only_a is None else str(d.only_a),
        "" if d.only_b is None else str(d.only_b),
        _p(d.mcnemar),
        str(d.n),
    )


def _p(p: float) -> str:
    return "" if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}"


def _short(text: str, n: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= n else flat[: n - 3] + "..."


def _terminal(table: Table, width: int | None) -> str:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    width = width or max(80, Console().width)
    parts = _fitting(table.header, table.rows, width)
    out = StringIO()
    console = Console(file=out, width=width, color_system=None)
    for i, (header, rows) in enumerate(parts):
        notes = Text("\n".join(table.notes)) if table.notes and i == len(parts) - 1 else None
        title = Text(table.title) if i == 0 else None
        drawn = RichTable(title=title, caption=notes, title_justify="left", caption_justify="left")
        for k, (name, wide) in enumerate(zip(header, _widths(header, rows, width), strict=True)):
            drawn.add_column(Text(name), justify="left" if k == 0 else "right", overflow="fold", width=wide)
        for row in rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
    return out.getvalue().rstrip()


Part = tuple[Sequence[str], Sequence[Sequence[str]]]  # header and rows


def _fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Part]:
    """Return the table as it fits into ``width`` without broken words: as it is, else with rows and columns exchanged, else
    its columns in several tables, each of which begins with the first column."""

    def needed(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
        longest = _longest_words(header, rows)
        return sum(longest) + 3 * len(longest) + 1

    if needed(header, rows) <= width:
        return [(header, rows)]
    turned = list(zip(header, *rows, strict=True))
    if needed(turned[0], turned[1:]) <= width:
        return [(turned[0], turned[1:])]

    def chosen(columns: Sequence[int]) -> Part:
        return [header[k] for k in columns], [[row[k] for k in columns] for row in rows]

    groups = [[0]]
    for k in range(1, len(header)):
        if len(groups[-1]) > 1 and needed(*chosen([*groups[-1], k])) > width:
            groups.append([0])
        groups[-1].append(k)
    return [chosen(group) for group in groups]


def _longest_words(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    columns = zip(header, *rows, strict=True)
    return [max((len(word) for cell in column for word in cell.split()), default=1) for column in columns]


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """Return each column's width: its longest word, and what is left goes to the columns that would wrap; None where the
    words do not fit."""
    widths = _longest_words(header, rows)
    left = width - sum(widths) - 3 * len(widths) - 1
    if left < 0:
        return [None] * len(widths)
    for k, column in enumerate(zip(header, *rows, strict=True)):
        more = min(left, max(len(line) for cell in column for line in (cell.splitlines() or [""])) - widths[k])
        widths[k] += max(more, 0)
        left -= max(more, 0)
    return list(widths)


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|" + "|".join([" --- ", *[" ---: "] * (len(table.header) - 1)]) + "|"
    body = [line(table.header), rule, *map(line, table.rows)]
    return "\n".join(
        [f"**{table.title}**", "", *body, *(["", *(f"{n}  " for n in table.notes)] if table.notes else [])]
    )


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"}}  # fmt: skip


def _latex(table: Table) -> str:
    def text(cell: str) -> str:
        return re.sub(r"[\\~^<>|&%$#_{}]", lambda m: _TEX[m.group()], cell)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(text, cells)) + r" \\"

    body = [
        r"\begin{table}",
        rf"\caption{{{text('. '.join([table.title, *table.notes]))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        line(table.header),
        r"\midrule",
        *map(line, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(body)


def _html(table: Table) -> str:
    def line(cells: Sequence[str], head: bool = False) -> str:
        tags = ['th scope="col"'] * len(cells) if head else ['th scope="row"', *["td"] * (len(cells) - 1)]
        return (
            f"<tr>{''.join(f'<{t}>{html.escape(c)}</{t.split()[0]}>' for t, c in zip(tags, cells, strict=True))}</tr>"
        )

    notes = "".join(f"<p>{html.escape(n)}</p>" for n in table.notes)
    return (
        f"<table>\n<caption>{html.escape(table.title)}</caption>\n<thead>{line(table.header, True)}</thead>\n<tbody>\n"
        + "\n".join(map(line, table.rows))
        + f"\n</tbody>\n</table>{notes}"
    )
