"""``limelight demo``: three questions whose prompt or image (recording, film) misleads a shipped miniature, a caption, and a second look."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from limelight.decoding.compare import Comparison, compared
from limelight.decoding.explain import explained, watched
from limelight.decoding.generate import generate
from limelight.decoding.registry import strategies as known_strategies
from limelight.decoding.registry import strategy as by_name
from limelight.decoding.strategy import Strategy
from limelight.demo.films import NAMES
from limelight.demo.outcome import (
    HOMES,
    MODELS,
    NOUNS,
    Caption,
    Decision,
    Example,
    Kind,
    Outcome,
    caption_of,
    chosen_settings,
    curated,
    decision_of,
    first,
    media_of,
    outcome_of,
)
from limelight.demo.scenes import OBJECTS
from limelight.demo.sounds import EVENTS
from limelight.demo.verdicts import caption_verdict, listed, question_verdict
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.models.loading import load
from limelight.report.page import Case, save_page
from limelight.report.words import text_words, word_flagged, words
from limelight.types import Generation

MAX_NEW_TOKENS = 8
CAPTION_TOKENS = {"image": 24, "audio": 24, "video": 48}
VOCABULARY = {"image": OBJECTS, "audio": EVENTS, "video": NAMES}
STRATEGIES = ("relevance-contrastive", "vcd", "lime")
SECOND_LOOKS = ("reconsider", "look-again")  # the first that is there; look-again is made for questions
CONTRASTIVE = "relevance-contrastive"


@dataclass(frozen=True)
class Demo:
    """Results and files of :func:`run_demo`."""

    outcomes: Mapping[str, tuple[Outcome, ...]]
    decisions: tuple[Decision, ...]
    verdicts: tuple[str, ...]
    summary: str
    page: Path
    seconds: float
    caption: Comparison | None = None
    caption_verdict: str = ""
    rule: str = field(default="", repr=False)


def run_demo(
    out: Path,
    *,
    audio: bool = False,
    video: bool = False,
    model: str | Path | Adapter | None = None,
    strategies: Sequence[str] = STRATEGIES,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    examples: Path | None = None,
    limit: int = 3,
    console: Console | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Ask a miniature misleading questions with several strategies, and let it describe an image; print a verdict on each, and
    write ``demo.html`` and an overlay per question into ``out``.

    Args:
        out: folder for the overlays and ``demo.html``; created if needed.
        audio: use the audio miniature and its recordings instead of the vision miniature; video: the video miniature and its
            films.
        strategies: names of the strategies compared with greedy.
        settings: strategy -> settings; by default the preset of relevance-contrastive, else those of ``settings.json``.
        limit: number of questions.
        on_progress: called with a description of the current step.

    Raises:
        DataError: there are no examples. ModelError: the miniature is missing. SettingError: both audio and video.
    """
    if audio and video:
        raise SettingError("the demo shows recordings or films, got both audio and video", hint="run it once for each")
    kind: Kind = "audio" if audio else "video" if video else "image"
    began = time.perf_counter()
    console = console or Console()
    home = HOMES[kind]
    folder = examples or home / "examples"
    rows, rule = curated(folder)
    rows, caption = first(rows, limit), caption_of(folder)
    out.mkdir(parents=True, exist_ok=True)
    on_progress("loading the miniature")
    adapter = model if isinstance(model, Adapter) else load(model or MODELS[kind])
    usual = chosen_settings(home / "settings.json")[0] | {CONTRASTIVE: {"preset": "questions"}}
    given: Mapping[str, Mapping[str, Any]] = usual if settings is None else settings
    named = {"greedy": by_name("greedy"), **{n: by_name(n, **given.get(n, {})) for n in strategies}}
    outcomes: dict[str, list[Outcome]] = {n: [] for n in named}
    decisions: list[Decision] = []
    verdicts: list[str] = []
    cases: list[Case] = []
    for number, example in enumerate(rows, start=1):
        prompt = adapter.prepare(example.text, {example.kind: [str(example.file)]})
        for name, method in named.items():
            on_progress(f"question {number} of {len(rows)}: {name}")
            answer = generate(adapter, None, prompt, strategy=method, relevance=False, max_new_tokens=MAX_NEW_TOKENS)
            outcomes[name].append(outcome_of(example, explained(adapter, answer)))
        decisions.append(decision_of(adapter, example, prompt, out))
        latest = [o[-1] for o in outcomes.values()]
        verdicts.append(question_verdict(example, latest))
        _print_question(console, latest, decisions[-1], verdicts[-1])
        cases.append(_case(adapter, latest, decisions[-1], verdicts[-1]))
    described, told = None, ""
    if caption is not None:
        described = _described(adapter, caption, on_progress)
        told = caption_verdict(caption, {a.strategy: a for a in described.answers}, frozenset(VOCABULARY[kind]))
        _print_caption(console, caption, described, told)
        cases.append(_caption_case(adapter, caption, described, told))
    done = {name: tuple(found) for name, found in outcomes.items()}
    summary = summarise(done, decisions, picked=bool(rule))
    title = f"Does the answer come from the {'picture' if kind == 'image' else NOUNS[kind]}?"
    page = save_page(out / "demo.html", cases, title=title, note=summary)
    seconds = time.perf_counter() - began
    console.print()
    console.print(summary, markup=False, style="dim")
    console.print(f"Open {page} and click a word ({seconds:.0f} s).", markup=False, style="bold")
    return Demo(done, tuple(decisions), tuple(verdicts), summary, page, seconds, described, told, rule)


def _described(adapter: Adapter, caption: Caption, on_progress: Callable[[str], None]) -> Comparison:
    """Describe the image, recording or film: greedy with the meter, relevance-contrastive, and a second look."""
    prompt = adapter.prepare(caption.text, {caption.kind: [str(caption.file)]})
    second = next(n for n in SECOND_LOOKS if n in known_strategies())
    chosen: list[Strategy] = [by_name("greedy"), by_name(CONTRASTIVE, preset="captions"), by_name(second)]
    answers = []
    for method in chosen:
        on_progress(f"caption: {method.name}")
        answer = generate(
            adapter,
            None,
            prompt,
            strategy=watched(method),
            relevance=False,
            max_new_tokens=CAPTION_TOKENS[caption.kind],
        )
        answers.append(explained(adapter, replace(answer, strategy=method.name, settings=method.settings())))
    return compared(adapter, answers)


def summarise(
    outcomes: Mapping[str, Sequence[Outcome]], decisions: Sequence[Decision] = (), *, picked: bool = False
) -> str:
    """Summarise the results; ``picked``: the examples were selected because greedy errs, which favours any change."""
    greedy = outcomes["greedy"]
    noun = greedy[0].example.noun if greedy else "image"
    counts = [f"{name} {sum(o.right for o in found)}" for name, found in outcomes.items()]
    summary = f"Correct answers to {len(greedy)} questions: {', '.join(counts)}."
    aimed = [(d.inside, d.example.area) for d in decisions if d.inside is not None]
    if aimed:
        inside, area = (float(np.mean([row[i] or 0.0 for row in aimed])) for i in (0, 1))
        place = {"image": ("object", "in its box", "area"), "recording": ("event", "during it", "time")}.get(
            noun, ("object", "in the frames that show it", "frames")
        )
        summary += (
            f" Where the {place[0]} in question is there, {inside:.0%} of the {noun}'s evidence lies {place[1]}"
            f" ({area:.0%} of the {place[2]})."
        )
    if picked:
        table = {"image": "quality", "recording": "quality-audio"}.get(noun, "quality-video")
        summary += (
            f" The {noun}s were selected because greedy errs on them, so they show improvements but no regressions;"
            f" docs/{table}.md shows both."
        )
    return summary


def _case(adapter: Adapter, outcomes: Sequence[Outcome], decision: Decision, verdict: str) -> Case:
    example = decision.example
    there = listed(list(example.objects))
    return Case(
        [o.generation for o in outcomes],
        media_of(example),
        question=example.text,
        truth=f"{example.label} (in the {example.noun}: {there})" if there else example.label,
        note=verdict,
        verdicts=[o.right for o in outcomes],
        spell=lambda token: adapter.tokens([token])[0],
        decisions=[decision.relevance],
    )


def _caption_case(adapter: Adapter, caption: Caption, described: Comparison, verdict: str) -> Case:
    return Case(
        described.answers,
        media_of(caption),
        question=caption.text,
        truth=listed(list(caption.objects)),
        note=verdict,
        spell=lambda token: adapter.tokens([token])[0],
        decisions=[d for d in described.decisions[:1] if d is not None],
    )


def _print_question(console: Console, outcomes: Sequence[Outcome], decision: Decision, verdict: str) -> None:
    example = decision.example
    console.print()
    console.print(Text(example.text, "bold"))
    console.print(Text(verdict))
    width = max(len(o.generation.strategy) for o in outcomes)
    for o in outcomes:
        mark = ("✓", "bold green") if o.right else ("✗", "bold red")
        console.print(Text.assemble(f"  {o.generation.strategy:{width}} ", mark, f" {o.generation.text}"))
    found = decision.relevance
    tops = ", ".join(f"{text} {value:+.2g}" for text, value in text_words(found)[:4])
    media = f"{example.noun} {found.total(example.kind):+.2g}"
    if decision.inside is not None:
        place = {"image": "in the box of", "audio": "during"}.get(example.kind, "in the frames that show")
        media += f" ({decision.inside:.0%} of it {place} the {example.object})"
    console.print(Text(f"  why {found.explains}: {media}; text: {tops}", "dim"))


def _print_caption(console: Console, caption: Caption, described: Comparison, verdict: str) -> None:
    console.print()
    console.print(Text(caption.text, "bold"))
    console.print(Text(verdict))
    width = max(len(a.strategy) for a in described.answers)
    for answer in described.answers:
        console.print(Text.assemble(f"  {answer.strategy:{width}}  ", _flagged(answer)))


def _flagged(answer: Generation) -> Text:
    text = Text()
    for word in words(answer):
        text.append(" " if word.space and text.plain else "")
        marked = word_flagged(answer, word)
        text.append(("⚑" if marked else "") + word.text, "bold red" if marked else "")
    return text


def as_plain(demo: Demo) -> dict[str, Any]:
    """Convert a demo to plain values for JSON."""
    return {
        "summary": demo.summary,
        "rule": demo.rule,
        "page": str(demo.page),
        "seconds": round(demo.seconds, 1),
        "decisions": [
            {
                "id": d.example.id, "explains": d.relevance.explains, "inside_box": d.inside, "area": d.example.area,
                "overlay": str(d.overlay),
            }
            for d in demo.decisions
        ],
        "examples": [
            _plain_example([o[i] for o in demo.outcomes.values()], verdict) for i, verdict in enumerate(demo.verdicts)
        ],
        "caption": None if demo.caption is None else {
            "verdict": demo.caption_verdict,
            "answers": {a.strategy: a.text for a in demo.caption.answers},
            "flagged": {a.strategy: [w.text for w in words(a) if word_flagged(a, w)] for a in demo.caption.answers},
        },
    }  # fmt: skip


def _plain_example(outcomes: Sequence[Outcome], verdict: str) -> dict[str, Any]:
    example: Example = outcomes[0].example
    return {
        "id": example.id,
        "text": example.text,
        "label": example.label,
        "verdict": verdict,
        "answers": {
            o.generation.strategy: {
                "text": o.generation.text,
                "right": o.right,
                f"{example.kind}_share": round(o.share, 4),
            }
            for o in outcomes
        },
    }
