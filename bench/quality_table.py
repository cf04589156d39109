"""The quality table as Markdown, and the plot of quality against cost."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from bench.direct_labels import GROUPS, group_of
from bench.quality_data import CAPTION_SETS, IMAGE_CELLS, TEXT_CELLS

SPEED = Path(__file__).parent / "results" / "speed.json"
# Rows of the quality table -> rows of the speed table with their cost.
COST = {
    "greedy": "greedy", "sampled": "greedy", "relevance-contrastive": "relevance-contrastive",
    "relevance-contrastive, CP-LRP": "relevance-contrastive", "exact LIME (paper)": "exact LIME", "exact LIME, margin": "exact LIME",
    "exact LIME, text positions": "exact LIME",
    "cached LIME, margin": "cached LIME, 1 update", "cached LIME, difference": "cached LIME, 1 update",
    "cached LIME, margin, text positions": "cached LIME, 1 update",
    "cached LIME, margin, gated": "cached LIME, gated 20 %", "cached LIME, paper weights": "cached LIME, 1 Adam update",
    "M3ID, released": "M3ID", "PAI, first token too": "PAI",
    **{name: name for name in ("VCD", "ICD", "M3ID", "PAI", "AvisC", "DoLa", "DeCo", "MemVR")},
    **{name: name for name in ("RUDDER", "VISTA", "ILVAD", "AGLA", "FLB", "IAT", "KVSmooth")}, "VAF (ClearSight)": "VAF",
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
    out = [f"Text-borne prior: accuracy, {n} questions per cell (test)", "", _head(["decoder", *short])]
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
                "cost",
            ]
        )
    )
    for name, row in rows:
        out.append(_row(_mark(name, row), [*_summary(row), _cost(name)]))
    if greedy:
        blind_mean = (greedy["cells"]["none/clear"]["accuracy"] + greedy["cells"]["none/poor"]["accuracy"]) / 2
        out.append(_row("control: greedy that never sees the hint", [f"{blind_mean:.3f}"] * 3 + [""] * 7))
    for key, title in (("auc", "AUC"), ("f1", "F1"), ("yes_ratio", "yes ratio")):
        out += ["", f"Text-borne prior: {title} in every cell", "", _head(["decoder", *short])]
        out.append(_row("probe of the image tokens (ceiling)", [f"{probe[c][key]:.3f}" for c in TEXT_CELLS]))
        for name, row in rows:
            out.append(_row(_mark(name, row), [f"{row['cells'][c][key]:.3f}" for c in TEXT_CELLS]))
    out += ["", f"Image-borne prior: accuracy / AUC, {n} questions per cell (test)", ""]
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
    out += ["", f"Captions: CHAIR_s / CHAIR_i / recall, {results['captions']} per set, clear images (test)", ""]
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


@cache
def costs() -> dict[str, float]:
    """Row of the speed table -> cost of a token, x plain greedy (600 prompt tokens, batch 1)."""
    if not SPEED.exists():
        return {}
    rows = json.loads(SPEED.read_text())["rows"]
    return {r["name"]: r["token"]["ratio"] for r in rows if r["prompt_tokens"] == 600 and r["batch"] == 1}


def _cost(name: str) -> str:
    found = costs().get(COST.get(name, ""))
    return "" if found is None else f"{found:.0f}x" if found >= 10 else f"{found:.1f}x"


def pareto(results: dict[str, Any], path: Path) -> None:
    """Gain over greedy on all text cells with its 95 % interval, a row per decoder, labelled with its name and cost."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(name, row["text_cells_vs_greedy"]) for name, row in _in_order(results) if row.get("text_cells_vs_greedy")]
    rows.sort(key=lambda row: row[1][0])
    figure = Figure(figsize=(8.5, 0.27 * len(rows) + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, (name, (value, low, high)) in enumerate(rows):
        colour = GROUPS[group_of(name)]
        axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([value], [y], "o", color=colour, markersize=5)
        cost = _cost(name)
        axes.text(high + 0.002, y, name + (f"  ({cost})" if cost else ""), va="center", fontsize=8, color=colour)
    axes.axvline(0, color=GROUPS["plain"], linewidth=0.8)
    axes.text(0, len(rows) - 0.3, "greedy", ha="center", va="bottom", fontsize=8, color=GROUPS["plain"])
    axes.set_yticks([])
    axes.set_ylim(-0.8, len(rows) + 0.4)
    axes.margins(x=0.28)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(
        "accuracy minus greedy, all cells with a misleading or right text, 95 % interval (cost of a token, x greedy)",
        fontsize=8,
    )
    axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=130)


# Rows of the short table in docs/quality.md.
SHORT = (
    "greedy", "sampled", "exact LIME (paper)", "exact LIME, text positions", "random direction, equal norm",
    "cached LIME, difference", "cached LIME, margin", "relevance-contrastive", "VCD", "M3ID", "M3ID, released", "PAI",
    "PAI, first token too", "AvisC", "DoLa",
)  # fmt: skip


def short(results: dict[str, Any]) -> str:
    """The short table: some cells, mixtures, captions, cost."""
    cells = {
        "none/clear": "no hint", "E-right/clear": "right E", "E-wrong/clear": "wrong E", "C-wrong/clear": "wrong C",
        "C-right/poor": "poor: right C", "C-wrong/poor": "poor: wrong C", "adversarial/clear": "image-borne",
    }  # fmt: skip
    rest = ["70:30", "AUC", "minus greedy, all text cells [95 %]", "captions: CHAIR_s / recall", "cost"]
    out = [_head(["decoder", *cells.values(), *rest])]
    probe = results["probe"]
    out.append(
        _row("probe of the image tokens (ceiling)", [f"{probe[c]['accuracy']:.2f}" for c in cells] + [""] * len(rest))
    )
    for name, row in _in_order(results):
        if name not in SHORT:
            continue
        told = row["captions"].get("none")
        numbers = [
            *(f"{row['cells'][c]['accuracy']:.2f}" for c in cells),
            f"{row['mixtures']['0.7']:.3f}",
            f"{row['auc_fixed_hint']:.3f}",
            _interval(row.get("text_cells_vs_greedy")),
            "" if told is None else f"{told['chair_s']:.3f} / {told['recall']:.3f}",
            _cost(name),
        ]
        out.append(_row(_mark(name, row), numbers))
    greedy = results["rows"].get("greedy")
    if greedy:
        blind = [
            greedy["cells"][c if c == "adversarial/clear" else "none/" + c.split("/")[1]]["accuracy"] for c in cells
        ]
        mean = (greedy["cells"]["none/clear"]["accuracy"] + greedy["cells"]["none/poor"]["accuracy"]) / 2
        numbers = [*(f"{x:.2f}" for x in blind), f"{mean:.3f}", "", "", "", ""]
        out.append(_row("control: greedy that never sees the hint", numbers))
    return "\n".join(out)
