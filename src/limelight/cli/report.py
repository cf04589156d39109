"""``limelight report``: tables of complete and running benchmarks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, get_args

import typer

from limelight.benchmarks.card import model_card
from limelight.benchmarks.frontier import frontier_table
from limelight.benchmarks.results import Results, Run, find_runs
from limelight.benchmarks.scorers.grounding import Sign
from limelight.benchmarks.tables import Format, Table, differing_table, labels, paired_table, render, side_by_side
from limelight.errors import SettingError

EXAMPLES = """
Examples:

    limelight report runs/

    limelight report runs/pope --format latex --metric "coco/mean/*" --output pope.tex

    limelight report runs/pope/greedy runs/pope/lime --against greedy --differ 20

    limelight report runs/sweep --frontier          hallucination and recall over the settings of a sweep

    limelight report runs/pope --parser strict      the same answers, scored with another parser
"""


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders written by limelight bench or limelight audit, or their parent folders."),
    ],
    form: Annotated[
        str, typer.Option("--format", help="terminal, markdown, latex, html, or model-card (front matter and tables).")
    ] = "terminal",
    metric: Annotated[list[str] | None, typer.Option(help="Metric to show, * allowed; repeat for several.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every metric.")] = False,
    intervals: Annotated[bool, typer.Option(help="Show bootstrap intervals.")] = True,
    parser: Annotated[str, typer.Option(help="Score the answers with another parser.")] = "",
    sign: Annotated[
        str, typer.Option(help="Treatment of the sign of relevance in grounding: abs, positive or signed.")
    ] = "abs",
    against: Annotated[str, typer.Option(help="Compare the other runs with this one, question by question.")] = "",
    differ: Annotated[int, typer.Option(help="Number of differently answered questions to list; 0 for none.")] = 0,
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier",
            help="Hallucination against recall of caption runs, compared with --against (greedy by default), with p-values "
            "corrected for the number of tests.",
        ),
    ] = False,
    captions: Annotated[str, typer.Option(help="The set of captions for --frontier, where a task has several.")] = "",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 1000,
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Compare benchmark runs and audits in tables with confidence intervals; runs that are not comparable are marked."""
    card = form == "model-card"
    chosen: Format | None = "markdown" if card else next((f for f in get_args(Format) if f == form), None)
    if chosen is None:
        raise SettingError(f"unknown format {form!r}", hint=f"one of {', '.join(get_args(Format))}, model-card")
    if card and (against or differ or frontier):
        raise SettingError("a model card has no comparison of runs", hint="omit --against, --differ and --frontier")
    if sign not in get_args(Sign):
        raise SettingError(f"unknown sign treatment {sign!r}", hint=f"one of {', '.join(get_args(Sign))}")
    from limelight.auditing.run import AUDIT

    found = find_runs(runs, {AUDIT.name: AUDIT})
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in found:
        groups[run.task.name].append(run)
    tables: list[Table] = []
    scored_groups: list[list[Results]] = []
    if captions and not frontier:
        raise SettingError("--captions would have no effect", hint="add --frontier, or omit it")
    for group in groups.values():
        if frontier:
            tables.append(
                frontier_table(
                    group, baseline(group, against), parser, block=captions, resamples=resamples if intervals else 0
                )
            )
            continue
        scored = [r.score(parser, resamples=resamples if intervals else 0, sign=sign) for r in group]
        scored_groups.append(scored)
        tables.append(side_by_side(scored, metrics=metric or (), everything=everything, intervals=intervals))
        if against or differ:
            base = baseline(group, against)
            for other in (r for r in group if r is not base):
                if against:
                    tables.append(
                        paired_table(base, other, parser, metrics=metric or (), resamples=resamples, sign=sign)
                    )
                if differ:
                    tables.append(differing_table(base, other, parser, limit=differ, sign=sign))
    text = (
        model_card(scored_groups, metrics=metric or (["*"] if everything else ())) if card else render(tables, chosen)
    )
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


report.__doc__ = f"{report.__doc__}\n{EXAMPLES}"


def baseline(runs: list[Run], name: str) -> Run:
    """Return the run called ``name`` (its folder, or the end of its path); by default the one called greedy, else the first."""
    named = dict(zip(labels(runs), runs, strict=True))
    wanted = name or "greedy"
    for label, run in named.items():
        if wanted in (label, run.name, str(run.path)) or label.endswith(f"/{wanted}"):
            return run
    if name:
        raise SettingError(f"no run called {name!r} among {list(named)}", hint="use the name of its folder")
    return runs[0]
