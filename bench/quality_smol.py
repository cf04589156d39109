"""Yes/no questions on smol-vision: hints as a test condition, absent things at random, popular, adversarial.

    python -m bench.quality_smol                 everything (resumable; finished cells are kept in .cache/quality)
    python -m bench.quality_smol --only greedy VCD
    python -m bench.quality_smol --table         print the table from the committed bench/results/quality_smol.json

Settings are chosen on dev by accuracy at a 70:30 mixture of right and wrong hints, as in `bench.quality`; nothing is chosen on
test. "Greedy, yes raised" is a control: greedy with a constant added to the logit of yes, chosen likewise. Captions are in
`bench.free_text --model smol-vision`. It needs `make real` and the recipe's cut-outs (apt).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.quality import Bench, arguments, fingerprint, save
from bench.quality_rows import fixed_hint_difference, row_of
from bench.quality_smol_data import CELLS, IMAGE_CELLS, TEXT_CELLS
from bench.quality_smol_decoders import BY_NAME, DECODERS, RAISED
from bench.quality_table import _head, _interval, _mark, _row

RESULTS = Path(__file__).parent / "results" / "quality_smol.json"
WORLD = "bench.quality_smol_data"
QUESTIONS, DEV = 60, 30


class Questions(Bench):
    """The questions alone: no captions, and no share of relevance."""

    def run(self, jobs: list[tuple[Any, ...]], title: str) -> list[dict[str, Any]]:
        """Greedy's answers with its margin raised are greedy's, read once more."""
        plain = [("questions", "greedy", *j[2:5], {}, None) if j[1] == RAISED else j for j in jobs]
        done = super().run(plain, title)
        return [raised(r, **j[5]) if j[1] == RAISED else r for j, r in zip(jobs, done, strict=True)]

    def evaluate(self, decoder: Any, settings: dict[str, Any]) -> dict[str, Any]:
        seeds: tuple[int | None, ...] = decoder.sample_seeds or (None,)
        count = min(self.questions, decoder.questions or self.questions)
        jobs: list[tuple[Any, ...]] = [
            ("questions", decoder.name, "test", where, count, settings, seed) for seed in seeds for where in CELLS
        ]
        done = self.run(jobs, f"{decoder.name}, test")
        cells = {where: [done[i * len(CELLS) + k] for i in range(len(seeds))] for k, where in enumerate(CELLS)}
        return {"cells": cells, "captions": {}, "share": None, "seconds": sum(r["seconds"] for r in done)}


def raised(answers: dict[str, Any], logits: float) -> dict[str, Any]:
    """What the answers would be if ``logits`` were added to the logit of yes."""
    margin = [m + logits for m in answers["margin"]]
    return {**answers, "margin": margin, "yes": [m > 0 for m in margin], "unparsed": 0}


def render(results: dict[str, Any]) -> str:
    """Accuracy in every cell, AUC with the hint held fixed, differences to greedy, settings."""
    rows = [
        (_mark(d.name, results["rows"][d.name]), results["rows"][d.name]) for d in DECODERS if d.name in results["rows"]
    ]
    out = [f"smol-vision, yes/no questions: accuracy, {results['questions']} per cell (test)", ""]
    out.append(_head(["decoder", *[c.replace("/", " ") for c in TEXT_CELLS]]))
    out += [_row(name, [f"{row['cells'][c]['accuracy']:.2f}" for c in TEXT_CELLS]) for name, row in rows]
    out += ["", "Absent things by kind, and all cells with and without hints together", ""]
    columns = [c.split("/")[0] for c in IMAGE_CELLS]
    about = [
        "70:30",
        "AUC, hint fixed",
        "AUC minus greedy",
        "accuracy minus greedy [95 %]",
        "minus yes raised",
        "yes ratio",
        "settings",
    ]
    out.append(_head(["decoder", *columns, "accuracy", *about]))
    for name, row in rows:
        cells = [row["cells"][c] for c in TEXT_CELLS]
        out.append(_row(name, [
            *(f"{row['cells'][c]['accuracy']:.2f}" for c in IMAGE_CELLS),
            f"{sum(c['accuracy'] for c in cells) / len(cells):.3f}", f"{row['mixtures']['0.7']:.3f}",
            f"{row['auc_fixed_hint']:.3f}", _interval(row.get("auc_vs_greedy")), _interval(row.get("text_cells_vs_greedy")),
            _interval(row.get("text_cells_vs_raised")),
            f"{sum(c['yes_ratio'] for c in cells) / len(cells):.2f}", json.dumps(row["settings"]),
        ]))  # fmt: skip
    missing = [d.name for d in DECODERS if d.name not in results["rows"]]
    return "\n".join([*out, *(["", f"Not measured: {', '.join(missing)}."] if missing else [])])


def main() -> None:
    args = arguments(__doc__, BY_NAME, QUESTIONS, 0, RESULTS)
    if args.table:
        print(render(json.loads(args.out.read_text())))
        return
    sizes = {"model": fingerprint("smol-vision"), "questions": args.questions}
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    if any(results.get(key) != value for key, value in sizes.items()):
        results = {**sizes, "rows": {}}
    bench = Questions(args.workers, args.questions, 0, WORLD, DEV)
    chosen = {name: row["settings"] for name, row in results["rows"].items()}
    greedy = bench.evaluate(BY_NAME["greedy"], {})
    control = bench.evaluate(BY_NAME[RAISED], bench.choose(BY_NAME[RAISED], {})[0])
    for decoder in DECODERS:
        if args.only and decoder.name not in args.only:
            continue
        settings, trials = bench.choose(decoder, chosen)
        chosen[decoder.name] = settings
        raw = bench.evaluate(decoder, settings)
        row = row_of(decoder, raw, None if decoder.name == "greedy" else greedy)
        if decoder.name not in ("greedy", RAISED):
            row["auc_vs_greedy"] = fixed_hint_difference(raw["cells"], greedy["cells"])
            row["text_cells_vs_raised"] = row_of(decoder, raw, control)["text_cells_vs_greedy"]
        about = {"settings": settings, "change": decoder.change, "control": decoder.control, "trials": trials}
        results["rows"][decoder.name] = {**about, **row}
        save(results, args.out)
    print(render(results))


if __name__ == "__main__":
    main()
