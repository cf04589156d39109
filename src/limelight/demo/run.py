"""``limelight demo``: plain greedy and LIME side by side on held-out pictures of the shipped miniature."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from limelight.decoding.generate import generate
from limelight.decoding.registry import strategy as by_name
from limelight.errors import DataError
from limelight.models.adapter import Adapter, load
from limelight.models.media import read_image
from limelight.report.figure import shown
from limelight.report.media import Media, seen_box
from limelight.report.overlay import overlay
from limelight.report.page import Case, save_page
from limelight.report.words import Word, word_relevance, word_shares, words
from limelight.types import Generation, Prompt, Relevance

VISION = Path(__file__).parent / "vision"
EXAMPLES = VISION / "examples"
SETTINGS = VISION / "settings.json"
FALLBACK: dict[str, dict[str, Any]] = {"lime": {"lr": 1e-2}}
MAX_NEW_TOKENS = 8
Cells = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A curated question: its picture, the whole user turn and its parts, the true answer, boxes in pixels."""

    id: str
    image: Path
    text: str
    label: str
    cell: str = ""
    hint: str = ""
    question: str = ""
    object: str = ""
    objects: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One strategy's answer to one example; ``decisive`` is its first word, the yes or the no."""

    example: Example
    generation: Generation
    decisive: Word | None
    right: bool
    share: float
    inside: float | None
    overlay: Path

    @property
    def relevance(self) -> Relevance | None:
        return word_relevance(self.generation, self.decisive) if self.decisive is not None else None


@dataclass(frozen=True)
class Demo:
    """What :func:`run_demo` found and wrote."""

    outcomes: Mapping[str, tuple[Outcome, ...]]
    summary: str
    page: Path
    seconds: float


def curated(folder: Path = EXAMPLES) -> tuple[tuple[Example, ...], str]:
    """The examples of a folder and the rule by which they were chosen.

    Raises:
        DataError: there are none.
    """
    listing = folder / "examples.json"
    if not listing.is_file():
        raise DataError(f"no examples at {listing.name}", hint="the recipe writes them: python -m recipes.demo_vision")
    found = json.loads(listing.read_text(encoding="utf-8"))
    names = Example.__dataclass_fields__
    rows = [
        Example(**{k: folder / v if k == "image" else v for k, v in r.items() if k in names}) for r in found["examples"]
    ]
    if not rows:
        raise DataError(
            f"{listing.name} lists no examples", hint="run the recipe to its end: python -m recipes.demo_vision"
        )
    return tuple(rows), str(found.get("rule", ""))


def chosen_settings(path: Path = SETTINGS) -> tuple[dict[str, dict[str, Any]], str]:
    """Settings of the strategies for the miniature, chosen on its dev split, and a note on where they come from."""
    if not path.is_file():
        return FALLBACK, "settings.json is not there: LIME runs with lr 1e-2, which was not chosen on dev"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found, "settings of the strategies: chosen on the dev split (settings.json)"


def run_demo(
    out: Path,
    *,
    model: str | Path | Adapter = "demo-vision",
    strategies: Sequence[str] = ("lime",),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    examples: Path = EXAMPLES,
    limit: int | None = None,
    console: Console | None = None,
    watch: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Greedy and other strategies on the curated examples: printed side by side, drawn into ``out``.

    Args:
        out: folder for the overlays and ``demo.html``; made if needed.
        strategies: names that run beside greedy.
        settings: strategy -> settings; those of ``settings.json`` by default.
        limit: only so many examples, spread over their kinds.
        watch: told what is being worked on.

    Raises:
        DataError: there are no examples. ModelError: the miniature is not there.
    """
    began = time.perf_counter()
    console = console or Console()
    rows, rule = curated(examples)
    rows = spread(rows, limit)
    given, note = chosen_settings() if settings is None else (dict(settings), "settings as given")
    console.print(note, style="dim")
    out.mkdir(parents=True, exist_ok=True)
    watch("loading the miniature")
    adapter = model if isinstance(model, Adapter) else load(model)
    named = {"greedy": by_name("greedy"), **{n: by_name(n, **given.get(n, {})) for n in strategies}}
    outcomes: dict[str, list[Outcome]] = {n: [] for n in named}
    cases: list[Case] = []
    for number, example in enumerate(rows, start=1):
        prompt = adapter.prepare(example.text, {"image": [str(example.image)]})
        for name, method in named.items():
            watch(f"{number} of {len(rows)}: {example.image.stem}, {name}")
            said = generate(adapter, None, prompt, strategy=method, max_new_tokens=MAX_NEW_TOKENS)
            outcomes[name].append(_outcome(adapter, example, said, out))
        latest = [o[-1] for o in outcomes.values()]
        _print(console, number, len(rows), example, latest)
        cases.append(_case(adapter, example, prompt, latest))
    done = {name: tuple(found) for name, found in outcomes.items()}
    summary = summarise(done, picked=bool(rule))
    page = save_page(out / "demo.html", cases, title="Greedy and " + ", ".join(strategies), note=summary + " " + rule)
    seconds = time.perf_counter() - began
    console.print()
    console.print(summary, markup=False)
    console.print(f"{page} and {sum(map(len, done.values()))} overlays beside it, in {seconds:.0f} s", style="dim")
    return Demo(done, summary, page, seconds)


def spread(rows: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """The first ``limit`` examples, taken from each kind in turn."""
    if limit is None or limit >= len(rows):
        return tuple(rows)
    seen: dict[str, int] = {}
    turn = []
    for row in rows:
        turn.append((seen.setdefault(row.cell, 0), row))
        seen[row.cell] += 1
    kept = {id(row) for _, row in sorted(turn, key=lambda pair: pair[0])[:limit]}
    return tuple(row for row in rows if id(row) in kept)


def inside_box(relevance: Relevance, box: Sequence[int], size: tuple[int, int]) -> float | None:
    """Share of the picture's ``|R|`` inside a box (left, top, right, bottom; pixels), by covered area of each cell."""
    spans = relevance.spans_of("image")
    if len(spans) != 1 or spans[0].grid is None:
        return None
    heat = np.abs(np.asarray(relevance.on_grid(), dtype=np.float64))
    inside, whole = float((heat * coverage(heat.shape, box, size)).sum()), float(heat.sum())
    return inside / whole if whole else 0.0


def coverage(grid: Sequence[int], box: Sequence[int], size: tuple[int, int]) -> Cells:
    """The part of each cell ``[rows, columns]`` that lies in the box."""

    def along(cells: int, length: int, start: float, stop: float) -> Cells:
        edges = np.linspace(0, length, cells + 1)
        covered: Cells = np.maximum(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0.0)
        return covered * (cells / length)

    down, across = along(grid[0], size[1], box[1], box[3]), along(grid[1], size[0], box[0], box[2])
    return down[:, None] * across[None, :]


def summarise(outcomes: Mapping[str, Sequence[Outcome]], *, picked: bool = False) -> str:
    """What was seen, in a sentence or two; ``picked``: the examples are ones that greedy gets wrong, which favours any change."""
    greedy = outcomes["greedy"]
    n = len(greedy)
    parts = [f"Greedy is right on {sum(o.right for o in greedy)} of {n}"]
    for name, found in outcomes.items():
        if name == "greedy":
            continue
        shares = f"{np.mean([o.share for o in greedy]):.0%} to {np.mean([o.share for o in found]):.0%}"
        borne = []
        for kind, of_kind in (("the text misleads", _by_text), ("the picture misleads", lambda o: not _by_text(o))):
            rows = [o for o in found if of_kind(o)]
            if rows:
                borne.append(f"{sum(o.right for o in rows)} of {len(rows)} where {kind}")
        parts.append(
            f"{name} on {sum(o.right for o in found)} ({'; '.join(borne)}), "
            f"with the picture's share of the deciding word going from {shares}"
        )
    aim = [o for found in outcomes.values() for o in found if o.inside is not None]
    told = ", ".join(parts[:-1]) + f", {parts[-1]}." if len(parts) > 1 else parts[0] + "."
    if aim:
        area = float(np.mean([_area(o.example) for o in aim]))
        told += f" Where the object asked for is there, {np.mean([o.inside for o in aim if o.inside is not None]):.0%} of the picture's relevance lies in its box ({area:.0%} of the area)."
    if not picked:
        return told
    return told + (
        " The pictures were picked because greedy errs on them, so they can show repairs but not harm;"
        " the table of `make bench-quality` shows both."
    )


def _by_text(outcome: Outcome) -> bool:
    return bool(outcome.example.hint)


def _area(example: Example) -> float:
    left, top, right, bottom = example.objects[example.object]
    width, height = read_image(str(example.image)).size
    return (right - left) * (bottom - top) / (width * height)


def _outcome(adapter: Adapter, example: Example, said: Generation, out: Path) -> Outcome:
    found = words(said)
    first = found[0] if found else None
    relevance = word_relevance(said, first) if first is not None else None
    image = read_image(str(example.image))
    path = out / f"{example.image.stem}-{said.strategy}.png"
    inside = None
    if relevance is not None and first is not None:
        box = seen_box(getattr(adapter.processor, "image_processor", None), image.size)
        overlay(relevance, image, boxes=[box], word=first.text, strategy=said.strategy, path=path)
        if example.object in example.objects:
            inside = inside_box(relevance, example.objects[example.object], image.size)
    right = first is not None and first.text.casefold() == example.label.casefold()
    share = word_shares(said, first).get("image", 0.0) if first is not None else 0.0
    return Outcome(example, said, first, right, share, inside, path)


def _case(adapter: Adapter, example: Example, prompt: Prompt, outcomes: Sequence[Outcome]) -> Case:
    image = read_image(str(example.image))
    media = Media([image], [seen_box(getattr(adapter.processor, "image_processor", None), image.size)])
    return Case(
        [o.generation for o in outcomes],
        media,
        title=example.cell or example.id,
        question=example.text,
        truth=f"{example.label} (in the picture: {', '.join(example.objects)})" if example.objects else example.label,
        verdicts=[o.right for o in outcomes],
        spell=lambda token: adapter.tokens([token])[0],
    )


def _print(console: Console, number: int, total: int, example: Example, outcomes: Sequence[Outcome]) -> None:
    console.print()
    objects = f"; in the picture: {', '.join(example.objects)}" if example.objects else ""
    console.print(
        Text.assemble((f"{number}/{total}  ", "dim"), (example.text, "bold"), f"   in truth: {example.label}{objects}")
    )
    for o in outcomes:
        step = o.generation.steps[o.decisive.start] if o.decisive is not None else None
        mark = ("✓", "bold green") if o.right else ("✗", "bold red")
        line = Text.assemble(
            f"  {o.generation.strategy:9} ", mark, f" {o.generation.text:<5} ", f"picture {o.share:4.0%}  "
        )
        if step is not None:
            line.append(f"probability {np.exp(step.logprob):.2f}")
        console.print(line)
        notes = []
        if o.relevance is not None:
            tops = ", ".join(f"{shown(t)} {v:+.2g}" for _, t, v in o.relevance.top(4, "text"))
            notes.append(f"text that mattered most: {tops}")
        if step is not None:
            notes += [f"{k} loss {v[0]:.3g} → {v[-1]:.3g}" for k, v in step.losses.items() if v and k != "total"]
        if notes:
            console.print(Text(" " * 14 + "; ".join(notes), "dim"))


def as_plain(demo: Demo) -> dict[str, Any]:
    """The demo as plain values for JSON."""
    return {
        "summary": demo.summary,
        "page": str(demo.page),
        "seconds": round(demo.seconds, 1),
        "examples": [
            {
                "id": rows[0].example.id,
                "text": rows[0].example.text,
                "label": rows[0].example.label,
                "answers": {
                    o.generation.strategy: {
                        "text": o.generation.text, "right": o.right, "image_share": round(o.share, 4),
                        "inside_box": None if o.inside is None else round(o.inside, 4), "overlay": str(o.overlay),
                        "losses": {k: list(v) for k, v in (o.generation.steps[0].losses if o.generation.steps else {}).items()},
                    }
                    for o in rows
                },
            }
            for rows in zip(*demo.outcomes.values(), strict=True)
        ],
    }  # fmt: skip
