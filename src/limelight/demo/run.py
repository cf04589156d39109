"""``limelight demo``: plain greedy and LIME side by side on held-out pictures (or recordings) of the shipped miniatures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from limelight.decoding.generate import generate
from limelight.decoding.registry import strategy as by_name
from limelight.demo.outcome import (
    AUDIO,
    DECISION,
    VISION,
    Decision,
    Outcome,
    chosen_settings,
    curated,
    decision_of,
    media_of,
    outcome_of,
    spread,
)
from limelight.models.adapter import Adapter
from limelight.models.loading import load
from limelight.report.figure import shown
from limelight.report.page import Case, save_page
from limelight.types import Relevance

MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Demo:
    """What :func:`run_demo` found and wrote."""

    outcomes: Mapping[str, tuple[Outcome, ...]]
    decisions: tuple[Decision, ...]
    summary: str
    page: Path
    seconds: float


def run_demo(
    out: Path,
    *,
    audio: bool = False,
    model: str | Path | Adapter | None = None,
    strategies: Sequence[str] = ("lime",),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    examples: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
    watch: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Greedy and other strategies on the curated examples: printed side by side, drawn into ``out``.

    Args:
        out: folder for the overlays and ``demo.html``; made if needed.
        audio: the miniature that listens, and its recordings, instead of the one that looks.
        strategies: names that run beside greedy.
        settings: strategy -> settings; those of ``settings.json`` by default.
        limit: only so many examples, spread over their kinds.
        watch: told what is being worked on.

    Raises:
        DataError: there are no examples. ModelError: the miniature is not there.
    """
    began = time.perf_counter()
    console = console or Console()
    home = AUDIO if audio else VISION
    rows, rule = curated(examples or home / "examples")
    rows = spread(rows, limit)
    given, note = chosen_settings(home / "settings.json") if settings is None else (dict(settings), "settings as given")
    console.print(note, style="dim")
    out.mkdir(parents=True, exist_ok=True)
    watch("loading the miniature")
    adapter = model if isinstance(model, Adapter) else load(model or ("demo-audio" if audio else "demo-vision"))
    named = {"greedy": by_name("greedy"), **{n: by_name(n, **given.get(n, {})) for n in strategies}}
    outcomes: dict[str, list[Outcome]] = {n: [] for n in named}
    decisions: list[Decision] = []
    cases: list[Case] = []
    for number, example in enumerate(rows, start=1):
        prompt = adapter.prepare(example.text, {example.kind: [str(example.file)]})
        for name, method in named.items():
            watch(f"{number} of {len(rows)}: {example.file.stem}, {name}")
            said = generate(adapter, None, prompt, strategy=method, relevance=True, max_new_tokens=MAX_NEW_TOKENS)
            outcomes[name].append(outcome_of(adapter, example, said, out))
        decisions.append(decision_of(adapter, example, prompt, out))
        latest = [o[-1] for o in outcomes.values()]
        _print(console, f"{number}/{len(rows)}", latest, decisions[-1])
        cases.append(_case(adapter, latest, decisions[-1]))
    done = {name: tuple(found) for name, found in outcomes.items()}
    summary = summarise(done, decisions, picked=bool(rule))
    page = save_page(out / "demo.html", cases, title="Greedy and " + ", ".join(strategies), note=summary + " " + rule)
    seconds = time.perf_counter() - began
    console.print()
    console.print(summary, markup=False)
    console.print(
        f"{page} and {sum(map(len, done.values())) + len(decisions)} overlays beside it, in {seconds:.0f} s",
        style="dim",
    )
    return Demo(done, tuple(decisions), summary, page, seconds)


def summarise(
    outcomes: Mapping[str, Sequence[Outcome]], decisions: Sequence[Decision] = (), *, picked: bool = False
) -> str:
    """What was seen, in a few sentences; ``picked``: the examples are ones that greedy gets wrong, which favours any change."""
    greedy = outcomes["greedy"]
    noun = greedy[0].example.noun if greedy else "picture"
    parts = [f"Greedy is right on {sum(o.right for o in greedy)} of {len(greedy)}"]
    for name, found in outcomes.items():
        if name == "greedy":
            continue
        shares = f"{np.mean([o.share for o in greedy]):.0%} to {np.mean([o.share for o in found]):.0%}"
        kinds = {
            "the text misleads": [o for o in found if o.example.hint],
            f"the {noun} misleads": [o for o in found if not o.example.hint],
        }
        told = "; ".join(f"{sum(o.right for o in rows)} of {len(rows)} where {k}" for k, rows in kinds.items() if rows)
        parts.append(
            f"{name} on {sum(o.right for o in found)} ({told}), "
            f"with the {noun}'s share of the deciding word going from {shares}"
        )
    said = ", ".join(parts) + "."
    aimed = [(d.inside, d.example.area) for d in decisions if d.inside is not None]
    if aimed:
        inside, area = (float(np.mean([row[i] or 0.0 for row in aimed])) for i in (0, 1))
        place = ("object", "in its box", "area") if noun == "picture" else ("event", "inside it", "time")
        said += (
            f" Where the {place[0]} asked for is there, {inside:.0%} of the {noun}'s relevance for {DECISION} lies {place[1]}"
            f" ({area:.0%} of the {place[2]})."
        )
    if picked:
        table = "bench-quality" if noun == "picture" else "bench-quality-audio"
        said += (
            f" The {noun}s were picked because greedy errs on them, so they can show repairs but not harm;"
            f" the table of `make {table}` shows both."
        )
    return said


def _case(adapter: Adapter, outcomes: Sequence[Outcome], decision: Decision) -> Case:
    example = decision.example
    return Case(
        [o.generation for o in outcomes],
        media_of(adapter, example),
        title=example.cell or example.id,
        question=example.text,
        truth=f"{example.label} (in the {example.noun}: {', '.join(example.objects)})"
        if example.objects
        else example.label,
        verdicts=[o.right for o in outcomes],
        spell=lambda token: adapter.tokens([token])[0],
        asides=[decision.generation],
    )


def _print(console: Console, number: str, outcomes: Sequence[Outcome], decision: Decision) -> None:
    example = decision.example
    objects = f"; in the {example.noun}: {', '.join(example.objects)}" if example.objects else ""
    console.print()
    console.print(
        Text.assemble((f"{number}  ", "dim"), (example.text, "bold"), f"   in truth: {example.label}{objects}")
    )
    for o in outcomes:
        step = o.generation.steps[o.decisive.start] if o.decisive is not None else None
        mark = ("✓", "bold green") if o.right else ("✗", "bold red")
        line = Text.assemble(
            f"  {o.generation.strategy:9} ", mark, f" {o.generation.text:<5}   {example.noun} {o.share:.0%}"
        )
        if step is not None:
            line.append(f"  probability {np.exp(step.logprob):.2f}")
            losses = [f"{k} loss {v[0]:.3g} → {v[-1]:.3g}" for k, v in step.losses.items() if v and k != "total"]
            line.append("  " + ", ".join(losses) if losses else "", "dim")
        console.print(line)
    console.print(Text(f"  {DECISION} is decided by the text {_tops(decision.relevance)}; {_picture(decision)}", "dim"))


def _tops(relevance: Relevance, count: int = 4) -> str:
    return ", ".join(f"{shown(token)} {score:+.2g}" for _, token, score in relevance.top(count, "text"))


def _picture(decision: Decision) -> str:
    example = decision.example
    told = f"by the {example.noun} {decision.relevance.total(example.kind):+.2g}"
    if decision.inside is None:
        return told
    place = "in the box of" if example.kind == "image" else "during"
    return f"{told}, {decision.inside:.0%} of it {place} the {example.object}"


def as_plain(demo: Demo) -> dict[str, Any]:
    """The demo as plain values for JSON."""
    return {
        "summary": demo.summary,
        "page": str(demo.page),
        "seconds": round(demo.seconds, 1),
        "decisions": [
            {"id": d.example.id, "inside_box": d.inside, "area": d.example.area, "overlay": str(d.overlay)}
            for d in demo.decisions
        ],
        "examples": [
            {
                "id": rows[0].example.id,
                "text": rows[0].example.text,
                "label": rows[0].example.label,
                "answers": {
                    o.generation.strategy: {
                        "text": o.generation.text, "right": o.right, f"{o.example.kind}_share": round(o.share, 4),
                        "overlay": str(o.overlay),
                        "losses": {k: list(v) for k, v in (o.generation.steps[0].losses if o.generation.steps else {}).items()},
                    }
                    for o in rows
                },
            }
            for rows in zip(*demo.outcomes.values(), strict=True)
        ],
    }  # fmt: skip
