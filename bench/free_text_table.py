"""The tables of bench/free_text.py as Markdown."""

from __future__ import annotations

from typing import Any

PROMPTS = {"none": "no hint", "E-wrong": "a wrong hint"}
NAMES = {
    "demo-vision": "Vision miniature",
    "demo-audio": "Audio miniature",
    "smol-vision": "smol-vision (real weights)",
}


def _cells(*values: str) -> str:
    return "| " + " | ".join(values) + " |"


def _head(*names: str) -> list[str]:
    return [_cells(*names), "|" + "---|" * len(names)]


def _interval(value: Any) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*value)


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items()) or "-"


def captions(rows: dict[str, Any], where: str, total: int) -> list[str]:
    """One caption set: what is invented and what is found, with paired differences to greedy."""
    out = _head(
        "decoder", "settings (dev)", "CHAIR_s", "- greedy", "CHAIR_i", "recall", "- greedy", "words", "perplexity",
        "repeats a word",
    )  # fmt: skip
    for name, row in rows.items():
        r, plain = row["test"][where], name == "greedy"
        few = f" (n = {row['count']})" if row.get("count", total) < total else ""
        out.append(
            _cells(
                name + few, _settings(row["settings"]), f"{r['chair_s']:.3f}", "-" if plain else _interval(r["invented_vs_greedy"]),
                f"{r['chair_i']:.3f}", f"{r['recall']:.3f}", "-" if plain else _interval(r["recall_vs_greedy"]),
                f"{r['words']:.1f}", f"{r['perplexity']:.2f}", f"{r['repeats']:.3f}",
            )
        )  # fmt: skip
    return out


def short(found: dict[str, Any]) -> str:
    """A model's captions in one table: what is invented and found, without a hint and with a wrong one."""
    heads = ["decoder"]
    for prompt in PROMPTS.values():
        heads += [f"{prompt}: CHAIR_s", "minus greedy [95 %]", "recall", "minus greedy [95 %]"]
    out = _head(*heads)
    for name, row in found["captions"].items():
        cells = [name]
        for where in PROMPTS:
            r = row["test"][where]
            parts = (r["chair_s"], r["invented_vs_greedy"]), (r["recall"], r["recall_vs_greedy"])
            for value, change in parts:
                cells += [f"{value:.2f}", "" if name == "greedy" else _interval(change)]
        out.append(_cells(*cells))
    return "\n".join(out)


def speech(rows: dict[str, Any]) -> list[str]:
    """Word error rates, and words per recording without speech."""
    if not rows:
        return []
    sets = list(next(iter(rows.values()))["test"])
    out = _head("decoder", "settings (dev)", *sets)
    for name, row in rows.items():
        out.append(_cells(name, _settings(row["settings"]), *(f"{row['test'][s]['rate']:.3f}" for s in sets)))
    return out


def render(results: dict[str, Any]) -> str:
    """All tables of the results."""
    out: list[str] = []
    for model, found in results.items():
        for where, prompt in PROMPTS.items():
            title = f"{NAMES[model]}, captions, {prompt}: {found['captions_per_set']} test scenes"
            out += [title, "", *captions(found["captions"], where, found["captions_per_set"]), ""]
        if found["speech"]:
            title = f"{NAMES[model]}, transcripts: word error rate; noise, silence, events: words written per recording"
            out += [title, "", *speech(found["speech"]), ""]
    return "\n".join(out).rstrip()
