"""The look-again tables as Markdown."""

from __future__ import annotations

import json
from typing import Any

from bench.look_again import CELLS, FILM_CELLS, OLD_CELLS, OURS, REAL_CELLS, RESULTS, ROWS, SOUND_CELLS

TITLES = {
    "plain/3": "plain, 3 x", "plain/4": "plain, 4 x", "texture/3": "texture, 3 x", "2x2/2": "2 x 2", "3x3/3": "3 x 3",
    "4x4/4": "4 x 4", "relation/3": "relation", "event/4": "4 s", "event/20": "20 s",
    "brief/3": "in 3 of 60 frames", "brief/6": "in 6 of 60", "small/3": "small, 3 x", "brief-small/6": "small, in 6 of 60",
}  # fmt: skip


def _head(names: list[str]) -> str:
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _counts(cells: dict[str, Any], names: list[str]) -> str:
    found = sorted({cells[name]["questions"] for name in names})
    return f"{' or '.join(map(str, found))} questions per cell"


def _auc(cell: dict[str, Any], name: str, *, paired: bool = False) -> str:
    found = cell["auc"].get(name)
    if found is None:
        return ""
    value, low, high, difference, below, above = found
    if paired:
        return f"{difference:+.3f} [{below:+.3f}, {above:+.3f}]"
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"


def render(results: dict[str, Any]) -> str:
    """Budgets and localisers, what each part loses, cost, sounds, and pictures that need no second look."""
    cells = results["cells"]
    shown = [c for c in CELLS if c in cells]
    out: list[str] = []
    if shown:
        out += [f"AUC [95 %], {_counts(cells, shown)} ({results['split']}); @k: within k views", ""]
        out.append(_head(["", *[TITLES[c] for c in shown]]))
        for row in ROWS:
            names = [f"{row.name} @{b}" for b in (1, 2, 3, 5)]
            names += [f"{OURS}, any @{b}" for b in (2, 3, 5)] if row.name == OURS else []
            for name in names:
                if any(name in cells[c]["auc"] for c in shown):
                    label = {"peer": "peer: ", "control": "control: ", "oracle": "oracle: "}.get(row.kind, "") + name
                    out.append(_line([label.removesuffix(" @1"), *[_auc(cells[c], name) for c in shown]]))
        out += ["", f"Minus {OURS} within 2 views [95 %, paired]", "", _head(["", *[TITLES[c] for c in shown]])]
        for row in ROWS:
            name = f"{row.name} @2" if row.settings else f"{row.name} @1"
            if row.name != OURS and any(name in cells[c]["auc"] for c in shown):
                out.append(_line([name, *[_auc(cells[c], name, paired=True) for c in shown]]))
        out += ["", "Which part fails: one part replaced by what is true, or by another rule", ""]
        out.append(_head(["", *[TITLES[c] for c in shown]]))
        for b in (2, 5):
            parts = {
                f"{OURS} @{b}": f"{OURS} @{b}",
                f"{OURS}, gate uncertain @{b}": "when: only where the first view is uncertain",
                f"{OURS}, gate truth @{b}": "when: only where the first view is wrong (oracle)",
                f"{OURS}, any @{b}": "how: the view that is surest of yes (join any)",
                f"{OURS}, mean @{b}": "how: mean of all views",
                f"{OURS}, crops @{b}": "how: mean of the crops",
                f"{OURS}, truth @{b}": "how: the view that speaks for the truth (oracle)",
            }
            if b == 2:
                parts["oracle box @2"] = "where: the object's own box (oracle)"
            for name, label in parts.items():
                if any(name in cells[c]["auc"] for c in shown):
                    tail = "" if label == name else f" @{b}"
                    out.append(_line([label + tail, *[_auc(cells[c], name) for c in shown]]))
        out += ["", "Cost: forwards and backward passes of an answer of one token, processor time over greedy", ""]
        out.append(_head(["", "forwards", "backward", *[TITLES[c] for c in shown]]))
        for row in ROWS:
            if not row.settings or not any(row.name in cells[c]["ratio"] for c in shown):
                continue
            empty = 1 if row.join == "evidence" else 0
            ratios = [f"{cells[c]['ratio'][row.name]:.1f}" if row.name in cells[c]["ratio"] else "" for c in shown]
            label = f"{row.name} @{row.views}"
            out.append(_line([label, str(row.views + row.extra[0] + empty), str(row.extra[1]), *ratios]))
    sounds = [c for c in SOUND_CELLS if c in cells]
    if sounds:
        out += [
            "",
            f"Sounds: an event of .3 s, {_counts(cells, sounds)}",
            "",
            _head(["", *[TITLES[c] for c in sounds]]),
        ]
        names = list(dict.fromkeys(n for c in sounds for n in cells[c]["auc"]))
        out += [_line([n, *[_auc(cells[c], n) for c in sounds]]) for n in names]
    out += _films(cells)
    for c in (c for c in REAL_CELLS if c in cells):
        out += ["", f"smol-vision, scenes of 3 times the side that it sees, {_counts(cells, [c])}", ""]
        out.append(_head(["", "AUC [95 %]", f"minus {OURS} within 2 views [95 %, paired]", "accuracy"]))
        for n in cells[c]["auc"]:
            out.append(_line([n, _auc(cells[c], n), _auc(cells[c], n, paired=True), f"{cells[c]['accuracy'][n]:.3f}"]))
        if OURS in cells[c]["looked"]:
            out += ["", f"The gate for uncertain answers opens for {cells[c]['looked'][OURS]:.0%} of them."]
    old = [c for c in OLD_CELLS if c in cells]
    if old:
        out += [
            "",
            f"Pictures that the model sees in full detail, {_counts(cells, old)}: AUC, share looked at, processor time over greedy",
        ]
        out.append("")
        out.append(_head(["", *old]))
        for row in (r for r in ROWS if set(r.cells) & set(OLD_CELLS)):
            name = f"{row.name} @{2 if row.settings else 1}"
            if any(name in cells[c]["auc"] for c in old):
                out.append(_line([row.name, *[_old(cells[c], row.name, name) for c in old]]))
    missing = [r.name for r in ROWS if not any(r.name in c["seconds"] for c in cells.values())]
    if missing:
        out += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(out)


def _films(cells: dict[str, Any]) -> list[str]:
    """The section on long films: AUC within each budget, the difference to greedy, and cost."""
    shown = [c for c in FILM_CELLS if c in cells]
    if not shown:
        return []
    head = _head(["", *[TITLES[c] for c in shown]])
    out = ["", f"Films of 60 frames, of which the model is given eight: AUC [95 %], {_counts(cells, shown)}", "", head]
    rows = [r for r in ROWS if set(r.cells) & set(FILM_CELLS) and any(r.name in cells[c]["seconds"] for c in shown)]
    for row in rows:
        label = {"control": "control: ", "oracle": "oracle: "}.get(row.kind, "") + row.name
        for b in (1, 2, 3, 5):
            found = [_auc(cells[c], f"{row.name} @{b}") for c in shown]
            if any(found):
                out.append(_line([label if b == 1 else f"{label} @{b}", *found]))
    for b in (2, 5):
        for part, label in (
            ("gate uncertain", "only where the first view is uncertain"),
            ("truth", "the view that speaks for the truth (oracle)"),
        ):
            found = [_auc(cells[c], f"{OURS}, {part} @{b}") for c in shown]
            if any(found):
                out.append(_line([f"{OURS}, {label} @{b}", *found]))
    out += ["", f"Minus {OURS} within 2 views [95 %, paired]", "", head]
    for row in rows:
        name = f"{row.name} @{2 if row.settings else 1}"
        if row.name != OURS:
            out.append(_line([name, *[_auc(cells[c], name, paired=True) for c in shown]]))
    out += ["", "Processor time over greedy", "", head]
    for row in rows:
        if row.settings:
            ratios = [f"{cells[c]['ratio'][row.name]:.1f}" if row.name in cells[c]["ratio"] else "" for c in shown]
            out.append(_line([f"{row.name} @{row.views}", *ratios]))
    return out


def committed() -> str:
    """The tables of the committed results."""
    if not RESULTS.exists():
        return "Not measured yet: `python -m bench.look_again` writes bench/results/look_again.json."
    return render(json.loads(RESULTS.read_text()))


def _old(cell: dict[str, Any], row: str, name: str) -> str:
    if name not in cell["auc"]:
        return ""
    text = f"{cell['auc'][name][0]:.3f}"
    if row in cell["looked"]:
        text += f", {cell['looked'][row]:.0%}, {cell['ratio'][row]:.2f} x"
    return text
