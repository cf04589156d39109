"""README's two tables, from the committed results: what helps, and what it costs.

Rows of real weights come first: ``bench/results/real_weights.json`` holds them, where somebody has measured some, as a list of
``{"goal", "table", "without", "with", "on"}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.speed import ratio as speed_ratio

RESULTS = Path(__file__).parent / "results"
WITH_TABLE = "[table](docs/{}.md)"
CPU_NAMES = {"meter": "meter", "relevance-contrastive": "relevance-contrastive", "VCD": "VCD", "cached LIME, 1 update": "cached LIME, 1 update", "exact LIME": "exact LIME (the paper's)"}  # fmt: skip


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def helps() -> str:
    """What helps: goal, without, with, and what it was measured on."""
    lines = ["| goal | without | with | measured on |", "|---|---|---|---|"]
    lines += [_row(r["goal"], r["table"], r["without"], r["with"], r["on"]) for r in real()]
    found = _read("detection")["models"]
    for model, goal, on in (
        ("demo-vision", "find invented words in captions", "vision miniature"),
        ("demo-audio", "find invented sounds in captions", "audio miniature"),
    ):
        block = found[model]["captions"]
        score = {s["score"]: f"{s['AUROC']['value']:.2f}" for s in block["scores"]}
        lines.append(
            _row(
                goal, "detection", f"AUROC {score['log-probability']} (log-probability)",
                f"AUROC **{score['z']}** (grounding score)", f"{on}, {block['media']} media",
            )
        )  # fmt: skip
    captions = _read("free_text")["demo-vision"]["captions"]
    for name, goal, setting in (
        ("relevance-contrastive, z", "captions without absent objects", "`relevance-contrastive`, `preset=captions`"),
        ("reconsider", "take an unsupported word back", "`reconsider`"),
    ):
        plain, ours = (captions[n]["test"]["none"] for n in ("greedy", name))
        lines.append(
            _row(
                goal, "free-text", f"{plain['chair_s']:.1%} of captions name one, recall {plain['recall']:.2f}",
                f"**{ours['chair_s']:.1%}**, recall {ours['recall']:.2f} ({setting})", "vision miniature, 1000 scenes",
            )
        )  # fmt: skip
    rows = _read("quality")["rows"]
    cells = ("E-wrong/clear", "C-wrong/clear")
    right = {n: " / ".join(f"{rows[n]['cells'][c]['accuracy']:.2f}" for c in cells) for n in ("greedy", "AvisC", "relevance-contrastive")}  # fmt: skip
    lines.append(
        _row(
            "yes/no questions after a false statement / context", "quality", f"{right['greedy']} correct",
            f"**{right['AvisC']}** (`avisc`), {right['relevance-contrastive']} (`relevance-contrastive`)",
            "vision miniature, 1000 questions each",
        )
    )  # fmt: skip
    again = _read("look_again")["cells"]
    for cell, views, goal in (
        ("plain/3", 2, "one small object in a large image"),
        ("2x2/2", 3, "one of four small objects"),
    ):
        auc = {n: f"{again[cell]['auc'][n][0]:.2f}" for n in ("greedy @1", f"look again @{views}")}
        lines.append(
            _row(
                goal, "look-again", f"AUC {auc['greedy @1']}", f"AUC **{auc[f'look again @{views}']}** (`look-again`, {views} views)",
                f"vision miniature, {again[cell]['questions']} questions",
            )
        )  # fmt: skip
    return "\n".join(lines)


def real() -> list[dict[str, str]]:
    path = RESULTS / "real_weights.json"
    rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return rows


def _row(goal: str, table: str, without: str, better: str, on: str) -> str:
    return f"| {goal} ({WITH_TABLE.format(table)}) | {without} | {better} | {on} |"


def costs() -> str:
    """What it costs per token: on one CPU thread, and in the shape of a 7B model on a GPU."""
    cpu = {
        r["name"]: f"x{speed_ratio(r['token'])}"
        for r in _read("speed")["rows"]
        if r["prompt_tokens"] == 600 and r["batch"] == 1
    }
    gpu = {r["name"]: r for r in _read("gpu")["rows"] if r.get("prompt_tokens") == 600 and r.get("batch") == 1}
    lines = [
        "| | time per token, CPU | time per token, 7B shape on an H200 | memory beyond plain decoding, 7B shape |",
        "|---|---|---|---|",
    ]
    for name, label in CPU_NAMES.items():
        row = gpu.get(name)
        ratio = "not measured" if row is None else f"x{row['decode']['ratio']:.2f}"
        extra = "" if row is None else f"{(row['peak_bytes'] - row['greedy_peak_bytes']) / 2**30:.2f} GiB"
        lines.append(f"| {label} | {cpu[name]} | {ratio} | {extra} |")
    for name, label in (("audit", "audit of a finished answer"), ("attribute", "attribution of one word")):
        row = gpu[name]
        peak = f"{row['peak_bytes'] / 2**30:.2f} GiB in all"
        lines.append(f"| {label} | | {1e3 * row['seconds']:.0f} ms each | {peak} |")
    return "\n".join(lines)
