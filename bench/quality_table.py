"""The quality table as Markdown, and the plot of quality against cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.quality_data import CAPTION_SETS, IMAGE_CELLS, TEXT_CELLS

SPEED = Path(__file__).parent / "results" / "speed.json"
# Rows of the quality table -> rows of the speed table that say what they cost.
COST = {
    "greedy": "greedy", "sampled": "greedy", "relevance-contrastive": "relevance-contrastive", "VCD": "VCD", "M3ID": "M3ID",
    "relevance-contrastive, CP-LRP": "relevance-contrastive", "exact LIME (paper)": "exact LIME", "exact LIME, margin": "exact LIME",
    "cached LIME, margin": "cached LIME, 1 update", "cached LIME, difference": "cached LIME, 1 update",
    "cached LIME, margin, gated": "cached LIME, gated 20 %", "cached LIME, paper weights": "cached LIME, 1 Adam update",
}  # fmt: skip


def _head(names: list[str]) -> str:
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def _in_order(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    from bench.quality_decoders import DECODERS

    return [(d.name, results["rows"][d.name]) for d in DECODERS if d.name in results["rows"]]


def render(results: dict[str, Any]) -> str:
    """Four tables: text-borne prior, mixtures and AUC with paired intervals, image-borne prior, captions."""
    n = results["questions"]
    rows = _in_order(results)
    short = [c.replace("/clear", " clear").replace("/poor", " poor") for c in TEXT_CELLS]
    out = [f"Text-borne prior: accuracy, {n} questions a cell (test)", "", _head(["decoder", *short])]
    probe = results["probe"]
    out.append(_row("probe of the image tokens (ceiling)", [f"{probe[c]['accuracy']:.3f}" for c in TEXT_CELLS]))
    for name, row in rows:
        out.append(_row(_mark(name, row), [f"{row['cells'][c]['accuracy']:.3f}" for c in TEXT_CELLS]))
    greedy = results["rows"].get("greedy")
    if greedy:
        blind = [f"{greedy['cells']['none/' + c.split('/')[1]]['accuracy']:.3f}" for c in TEXT_CELLS]
        out.append(_row("control: greedy that never sees the hint", blind))
    out += [
        "",
        "Mixtures of right and wrong hints, AUC with the hint held fixed, difference to greedy over all text cells",
        "",
    ]
    out.append(
        _head(
            [
                "decoder",
                "90:10",
                "70:30",
                "50:50",
                "AUC",
                "minus greedy [95 %]",
                "greedy at the same yes ratio",
                "yes ratio",
                "F1",
                "image share",
            ]
        )
    )
    for name, row in rows:
        out.append(_row(_mark(name, row), _summary(row)))
    if greedy:
        blind_mean = (greedy["cells"]["none/clear"]["accuracy"] + greedy["cells"]["none/poor"]["accuracy"]) / 2
        out.append(_row("control: greedy that never sees the hint", [f"{blind_mean:.3f}"] * 3 + [""] * 6))
    for key, title in (("auc", "AUC"), ("f1", "F1"), ("yes_ratio", "yes ratio")):
        out += ["", f"Text-borne prior: {title} in every cell", "", _head(["decoder", *short])]
        out.append(_row("probe of the image tokens (ceiling)", [f"{probe[c][key]:.3f}" for c in TEXT_CELLS]))
        for name, row in rows:
            out.append(_row(_mark(name, row), [f"{row['cells'][c][key]:.3f}" for c in TEXT_CELLS]))
    out += ["", f"Image-borne prior: accuracy / AUC, {n} questions a cell (test)", ""]
    out.append(_head(["decoder", *[c.split("/")[0] for c in IMAGE_CELLS], "adversarial minus greedy [95 %]"]))
    out.append(
        _row(
            "probe of the image tokens (ceiling)",
            [f"{probe[c]['accuracy']:.3f} / {probe[c]['auc']:.3f}" for c in IMAGE_CELLS] + [""],
        )
    )
    for name, row in rows:
        cells = [f"{row['cells'][c]['accuracy']:.3f} / {row['cells'][c]['auc']:.3f}" for c in IMAGE_CELLS]
        out.append(_row(_mark(name, row), [*cells, _interval(row["cells"]["adversarial/clear"].get("vs_greedy"))]))
    out += ["", f"Captions: CHAIR_s / CHAIR_i / recall, {results['captions']} a set, clear pictures (test)", ""]
    out.append(_head(["decoder", *[f"hint {c}" for c in CAPTION_SETS]]))
    for name, row in rows:
        if row["captions"]:
            cells = ["{chair_s:.3f} / {chair_i:.3f} / {recall:.3f}".format(**row["captions"][c]) for c in CAPTION_SETS]
            out.append(_row(_mark(name, row), cells))
    from bench.quality_decoders import DECODERS

    missing = [d.name for d in DECODERS if d.name not in results["rows"]]
    if missing:
        out += ["", f"Not measured yet: {', '.join(missing)}."]
    out += ["", "Settings (chosen on dev)", "", _head(["decoder", "settings", "trials"])]
    for name, row in rows:
        settings = json.dumps({**row["settings"], **row["change"]})
        out.append(_row(_mark(name, row), [settings, str(len(row["trials"]) or 1)]))
    return "\n".join(out)


def _summary(row: dict[str, Any]) -> list[str]:
    cells = [row["cells"][c] for c in TEXT_CELLS]
    same = [c.get("greedy_at_same_yes_ratio") for c in cells]
    return [
        *(f"{row['mixtures'][m]:.3f}" for m in ("0.9", "0.7", "0.5")),
        f"{row['auc_fixed_hint']:.3f}",
        _interval(row.get("text_cells_vs_greedy")),
        "" if None in same else f"{sum(same) / len(same):.3f}",
        f"{sum(c['yes_ratio'] for c in cells) / len(cells):.2f}",
        f"{sum(c['f1'] for c in cells) / len(cells):.3f}",
        f"{row['image_share']:.2f}",
    ]


def _interval(found: Any) -> str:
    return "" if not found else f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


def _mark(name: str, row: dict[str, Any]) -> str:
    fewer = f" (n = {row['questions']})" if row.get("questions", 1000) < 1000 else ""
    return (f"control: {name}" if row["control"] else name) + fewer


def _row(name: str, cells: list[str]) -> str:
    return "| " + " | ".join([name, *cells]) + " |"


def pareto(results: dict[str, Any], path: Path) -> None:
    """Accuracy at 70:30 over cost (ratio to plain greedy, from the speed table at 600 prompt tokens)."""
    if not SPEED.exists():
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cost = {
        r["name"]: r["ratio_to_greedy"]
        for r in json.loads(SPEED.read_text())["rows"]
        if r["prompt_tokens"] == 600 and r["batch"] == 1
    }
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, row in _in_order(results):
        if cost.get(COST.get(name, "")):
            x, y = cost[COST[name]], row["mixtures"]["0.7"]
            axes.scatter([x], [y])
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(
        xscale="log",
        xlabel="cost of a token, x plain greedy (600 prompt tokens)",
        ylabel="accuracy, right : wrong hints 70 : 30",
    )
    axes.set_title("Quality against cost, text-borne prior (test)")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)


def short(results: dict[str, Any]) -> str:
    """The README's table: clear pictures, mixtures, image-borne cell, cost of captions."""
    cells = (
        "none/clear",
        "E-right/clear",
        "E-wrong/clear",
        "C-wrong/clear",
        "C-right/poor",
        "C-wrong/poor",
        "adversarial/clear",
    )
    names = ["no hint", "right E", "wrong E", "wrong C", "poor: right C", "poor: wrong C", "image-borne"]
    out = [_head(["decoder", *names, "70:30", "AUC", "minus greedy, all text cells [95 %]"])]
    probe = results["probe"]
    out.append(
        _row("probe of the image tokens (ceiling)", [f"{probe[c]['accuracy']:.2f}" for c in cells] + ["", "", ""])
    )
    for name, row in _in_order(results):
        numbers = [f"{row['cells'][c]['accuracy']:.2f}" for c in cells]
        rest = [
            f"{row['mixtures']['0.7']:.3f}",
            f"{row['auc_fixed_hint']:.3f}",
            _interval(row.get("text_cells_vs_greedy")),
        ]
        out.append(_row(_mark(name, row), numbers + rest))
    return "\n".join(out)
