"""python -m tools.readme_picture: draw docs/images/why.png, the first picture of README, from the shipped miniature.

The PNG holds what it was made from (``Description``) and when (``Creation Time``); tests/docs/test_readme.py asks the model again
and compares.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

import limelight
from limelight.demo.outcome import VISION
from limelight.report import heat
from limelight.report.figure import new_figure
from limelight.report.overlay import enlarged
from limelight.report.words import text_words

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "why.png"
QUESTION, EXAMPLE = "There is no hat. Is there a hat in the picture?", "hat"
INK, SOFT, RIGHT, WRONG = "#1b1f24", "#545d67", "#1a7f37", "#b3261e"


def asked() -> Any:
    """The comparison that the picture shows, and README's three lines print."""
    return limelight.compare(limelight.load("demo-vision"), QUESTION, media=limelight.example(EXAMPLE))


def inputs(found: Any) -> dict[str, Any]:
    """What the picture is made from: files, question, answers, and the numbers drawn."""
    files = {"image": limelight.example(EXAMPLE), "model": VISION / "model.safetensors"}
    return {
        **{name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()},
        "question": QUESTION,
        "answers": {a.strategy: a.text for a in found.answers},
        "why": found.decision.explains,
        "words": [[text, round(value, 2)] for text, value in text_words(found.decision, found.prompt.template)[:5]],
        "image": round(found.decision.total("image"), 2),
    }


def drawn(found: Any) -> Figure:
    """Question and answers on the left, the image with the evidence in the middle, the words on the right."""
    why, facts = found.decision, inputs(found)
    figure = new_figure(10.4, 3.3)
    figure.suptitle(QUESTION, fontsize=13, weight="bold", color=INK)
    left, original, seen, right = figure.subplots(1, 4, width_ratios=(1.5, 1.25, 1.25, 1.5))
    left.set_axis_off()
    for i, (name, text) in enumerate(facts["answers"].items()):
        good = text == "yes"
        y = 0.86 - 0.3 * i
        left.text(0, y, name, fontsize=10, color=SOFT, transform=left.transAxes)
        left.text(
            0,
            y - 0.13,
            f"{'✓' if good else '✗'} {text}",
            fontsize=15,
            color=RIGHT if good else WRONG,
            transform=left.transAxes,
        )
    left.text(
        0, 0.06, f"Why {facts['why']}:\nthe hat in the image is for it,\nthe words of the prompt against.", fontsize=9.5,
        color=INK, transform=left.transAxes,
    )  # fmt: skip
    picture = enlarged(Image.open(limelight.example(EXAMPLE)).convert("RGB"))
    ((cells, region),) = why.on_image()
    grid = heat.array(cells)
    original.imshow(picture)
    original.set_title("image", fontsize=9.5, color=SOFT)
    seen.imshow(heat.blend(picture, [(grid, region.fractions)], heat.limit(grid)))
    seen.set_title(f"image: {why.total('image'):+.2f} for “yes”", fontsize=9.5, color=SOFT)
    for axes in (original, seen):
        axes.set_xticks([])
        axes.set_yticks([])
    rows = facts["words"][::-1]
    colours = ["#{:02x}{:02x}{:02x}".format(*(heat.SUPPORTS if v >= 0 else heat.AGAINST)) for _, v in rows]
    right.barh(range(len(rows)), [v for _, v in rows], color=colours, height=0.62)
    for i, (text, value) in enumerate(rows):
        right.text(
            0.02 if value < 0 else -0.02, i, text, va="center", ha="left" if value < 0 else "right", fontsize=10.5
        )
        right.text(
            value, i, f" {value:+.2f} ", va="center", ha="right" if value < 0 else "left", fontsize=8.5, color=SOFT
        )
    right.axvline(0, color="#444", linewidth=0.7)
    right.set_xlim(-0.95, 0.4)
    right.set_axis_off()
    right.set_title("words: blue is for “no”, red for “yes”", fontsize=9.5, color=SOFT)
    return figure


def main() -> None:
    found = asked()
    made = datetime.datetime.now(datetime.UTC).date().isoformat()
    drawn(found).savefig(
        TARGET,
        dpi=120,
        metadata={"Description": json.dumps(inputs(found)), "Creation Time": made, "Software": "limelight"},
    )


if __name__ == "__main__":
    main()
