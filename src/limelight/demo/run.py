"""``limelight demo``: greedy decoding and LIME compared on held-out images (or recordings) of the shipped miniatures."""

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
    """Results and files of :func:`run_demo`."""

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
    on_progress: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Run greedy and other strategies on the curated examples; print the comparison and draw overlays into ``out``.

    Args:
        out: folder for the overlays and ``demo.html``; created if needed.
        audio: use the audio miniature and its recordings instead of the vision miniature.
        strategies: names of the strategies compared with greedy.
        settings: strategy -> settings; those of ``settings.json`` by default.
        limit: maximum number of examples, spread over their kinds.
        on_progress: called with a description of the current step.

    Raises:
        DataError: there are no examples. ModelError: the miniature is missing.
    """
    began = time.perf_counter()
    console = console or Console()
    home = AUDIO if audio else VISION
    rows, rule = curated(examples or home / "examples")
    rows = spread(rows, limit)
    given, note = chosen_settings(home / "settings.json") if settings is None else (dict(settings), "settings as given")
    console.print(note, style="dim")
    out.mkdir(parents=True, exist_ok=True)
    on_progress("loading the miniature")
    adapter = model if isinstance(model, Adapter) else load(model or ("demo-audio" if audio else "demo-vision"))
    named = {"greedy": by_name("greedy"), **{n: by_name(n, **given.get(n, {})) for n in strategies}}
    outcomes: dict[str, list[Outcome]] = {n: [] for n in named}
    decisions: list[Decision] = []
    cases: list[Case] = []
    for number, example in enumerate(rows, start=1):
        prompt = adapter.prepare(example.text, {example.kind: [str(example.file)]})
        for name, method in named.items():
            on_progress(f"{number} of {len(rows)}: {example.file.stem}, {name}")
            answer = generate(adapter, None, prompt, strategy=method, relevance=True, max_new_tokens=MAX_NEW_TOKENS)
            outcomes[name].append(outcome_of(adapter, example, answer, out))
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
        f"{page} and {sum(map(len, done.values())) + len(decisions)} overlays, in {seconds:.0f} s",
        style="dim",
    )
    return Demo(done, tuple(decisions), summary, page, seconds)


def summarise(
    outcomes: Mapping[str, Sequence[Outcome]], decisions: Sequence[Decision] = (), *, picked: bool = False
) -> str:
    """Summarise the results; ``picked``: the examples were selected because greedy errs, which favours any change."""
    greedy = outcomes["greedy"]
    noun = greedy[0].example.noun if greedy else "image"
    parts = [f"Greedy is correct on {sum(o.right for o in greedy)} of {len(greedy)}"]
    for name, found in outcomes.items():
        if name == "greedy":
            continue
        shares = f"{np.mean([o.share for o in greedy]):.0%} to {np.mean([o.share for o in found]):.0%}"
        kinds = {
            "the text misleads": [o for o in found if o.example.hint],
            f"the {noun} misleads": [o for o in found if not o.example.hint],
        }
        breakdown = "; ".join(
            f"{sum(o.right for o in rows)} of {len(rows)} where {k}" for k, rows in kinds.items() if rows
        )
        parts.append(
            f"{name} on {sum(o.right for o in found)} ({breakdown}), "
            f"with the {noun}'s share of the deciding word changing from {shares}"
        )
    summary = ", ".join(parts) + "."
    aimed = [(d.inside, d.example.area) for d in decisions if d.inside is not None]
    if aimed:
        inside, area = (float(np.mean([row[i] or 0.0 for row in aimed])) for i in (0, 1))
        place = ("object", "in its box", "area") if noun == "image" else ("event", "inside it", "time")
        summary += (
            f" Where the {place[0]} in question is present, {inside:.0%} of the {noun}'s relevance for {DECISION} is {place[1]}"
            f" ({area:.0%} of the {place[2]})."
        )
    if picked:
        table = "bench-quality" if noun == "image" else "bench-quality-audio"
        summary += (
            f" The {noun}s were selected because greedy errs on them, so they can show improvements but not regressions;"
            f" the table of `make {table}` shows both."
        )
    return summary


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
        Text.assemble((f"{number}  ", "dim"), (example.text, "bold"), f"   correct: {example.label}{objects}")
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
    console.print(
        Text(f"  relevance for {DECISION}: text {_tops(decision.relevance)}; {_media_share(decision)}", "dim")
    )


def _tops(relevance: Relevance, count: int = 4) -> str:
    return ", ".join(f"{shown(token)} {score:+.2g}" for _, token, score in relevance.top(count, "text"))


def _media_share(decision: Decision) -> str:
    example = decision.example
    total = f"{example.noun} {decision.relevance.total(example.kind):+.2g}"
    if decision.inside is None:
        return total
    place = "in the box of" if example.kind == "image" else "during"
    return f"{total}, {decision.inside:.0%} of it {place} the {example.object}"


def as_plain(demo: Demo) -> dict[str, Any]:
    """Convert a demo to plain values for JSON."""
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
