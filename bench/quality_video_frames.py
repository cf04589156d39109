"""Which frames a decision of the video miniature rests on: relevance, and what hiding frames does.

    python -m bench.quality_video_frames             measure (a minute), add to bench/results/quality_video.json, print
    python -m bench.quality_video --table            prints it with the other tables

A frame is hidden by its mean colour. The margin is that of the true answer; films clear, questions without a hint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import quality_score as score
from bench import quality_video_data as data
from bench.quality_table import _head, _interval, _row
from limelight.demo.film_questions import questions
from limelight.demo.films import FRAMES

RESULTS = Path(__file__).parent / "results" / "quality_video.json"
CELLS = ("what-none/clear", "when-none/clear", "order-none/clear")
QUESTIONS = 100


def measured(where: str, n: int) -> dict[str, Any]:
    """Means over n questions of a cell whose objects are there, with intervals of the differences."""
    import torch

    import limelight

    own, (yes, no) = data.adapter(), data.yes_no_ids()
    objects = {q.id: q.objects for q in questions("test", where, 2 * n)}
    kept: dict[str, list[float]] = {}
    for asked in [a for a in data.cell("test", where, 2 * n) if a.frames][:n]:
        inputs = data.inputs([asked])
        relevance = data.per_frame(limelight.attribute(own, inputs, yes, against=no))
        changes = set(asked.frames)
        shown = {t for name in objects[asked.id] for t in asked.film.of(name).frames}
        rest = set(range(FRAMES)) - changes - shown
        sets = [[], *([t] for t in range(FRAMES)), sorted(changes), sorted(shown), sorted(rest)]
        pixels = inputs["pixel_values_videos"]
        films = pixels.repeat(len(sets), 1, 1, 1, 1)
        for i, hidden in enumerate(sets):
            films[i, hidden] = pixels[0, hidden].mean((2, 3), keepdim=True)
        ids, mask = (inputs[k].expand(len(sets), -1) for k in ("input_ids", "attention_mask"))
        with torch.no_grad():
            logits = own.model(input_ids=ids, attention_mask=mask, pixel_values_videos=films).logits[:, -1]
        margin = ((logits[:, yes] - logits[:, no]) * (1 if asked.truth else -1)).tolist()
        fall = margin[0] - np.array(margin[1:])
        each = np.abs(fall[:FRAMES])
        first, second = (np.argsort(np.argsort(x)) for x in (relevance, each))
        found = {
            "relevance_changes": relevance[sorted(changes)].sum() / relevance.sum(), "chance_changes": len(changes) / FRAMES,
            "relevance_shown": relevance[sorted(shown)].sum() / relevance.sum(), "chance_shown": len(shown) / FRAMES,
            "margin": margin[0], "fall_changes": fall[-3], "fall_shown": fall[-2], "fall_rest": fall[-1],
            "agreement": np.corrcoef(first, second)[0, 1],
        }  # fmt: skip
        for name, value in found.items():
            kept.setdefault(name, []).append(float(value))
    out: dict[str, Any] = {name: float(np.mean(values)) for name, values in kept.items()}
    for part in ("changes", "shown"):
        values, chance = np.array(kept[f"relevance_{part}"]), np.array(kept[f"chance_{part}"])
        out[f"over_{part}"] = score.paired(values, chance)
    return out | {"n": len(kept["margin"])}


def render(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    head = ["cell", "R in the frames of the change", "over chance [95 %]", "R in the frames that show the objects", "over chance [95 %]",
            "margin", "falls by, change hidden", "objects hidden", "all others hidden", "rank correlation of relevance and hiding, by frame", "n"]  # fmt: skip
    title = (
        "What the decision rests on: relevance by frame, and the true answer's margin (logits) when frames are hidden"
    )
    out = [title, "", _head(head)]
    for where, row in found.items():
        numbers = [f"{row[k]:.2f}" for k in ("margin", "fall_changes", "fall_shown", "fall_rest", "agreement")]
        changes, shown = (f"{row[f'relevance_{p}']:.3f}" for p in ("changes", "shown"))
        cells = [changes, _interval(row["over_changes"]), shown, _interval(row["over_shown"]), *numbers, str(row["n"])]
        out.append(_row(where, cells))
    return "\n".join(out)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="a cell")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {where: measured(where, args.questions) for where in CELLS}
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    args.out.write_text(json.dumps(results | {"frames": found}, indent=1) + "\n")
    print(render(found))


if __name__ == "__main__":
    main()
