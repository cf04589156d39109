"""python -m tools.pictures: draw the figures of docs/explanation.md with the shipped miniature (under a minute)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

import limelight
from limelight.cli.output import draw_word, shown_media
from limelight.decoding.explain import explained, watched
from limelight.demo.outcome import EXAMPLES
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT
from limelight.report import heat
from limelight.report.figure import MODALITY_COLOURS, new_figure, shown
from limelight.report.words import text_words, word_contributions, word_shares, words

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images"
PICTURE = EXAMPLES / "E-wrong-000.png"
QUESTION = "There is no hat. Is there a hat in the picture?"


def relevance_in_words(adapter: Any) -> Figure:
    """Draw the relevance of the decision between "no" and "yes" over the image and the words of the prompt."""
    inputs = adapter.prepare(QUESTION, {"image": str(PICTURE)})
    decision = limelight.attribute(adapter, inputs, "yes", against="no")
    figure = new_figure(8.6, 3.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.7))
    grid = decision.on_grid().numpy()
    left.imshow(
        heat.blend(Image.open(PICTURE).convert("RGB").resize((448, 448)), [(grid, (0, 0, 1, 1))], heat.limit(grid))
    )
    left.set_axis_off()
    left.set_title(f"picture: {decision.total('image'):+.2f} in all", fontsize=9)
    rows = text_words(decision)[:9][::-1]
    values = [score for _, score in rows]
    right.barh(
        range(len(rows)), values, color=[np.array(heat.SUPPORTS if v > 0 else heat.AGAINST) / 255 for v in values]
    )
    right.set_yticks(range(len(rows)), [shown(token) for token, _ in rows], fontsize=8)
    right.axvline(0, color="#444", linewidth=0.6)
    right.set_title("words of the prompt (logit); red for yes, blue for no", fontsize=9)
    return figure


def rules_compared(adapter: Any) -> Figure:
    """Draw the relevance of one logit under three composites."""
    inputs = adapter.prepare("Is there a hat in the picture?", {"image": str(PICTURE)})
    figure = new_figure(8.6, 2.9)
    for axes, composite in zip(figure.subplots(1, 3), (ATTN_LRP, CP_LRP, GRADIENT_INPUT), strict=True):
        found = limelight.attribute(adapter, inputs.tensors, composite=composite)
        grid = found.on_grid().numpy()
        picture = Image.open(PICTURE).convert("RGB").resize((448, 448))
        axes.imshow(heat.blend(picture, [(grid, (0, 0, 1, 1))], heat.limit(grid)))
        axes.set_axis_off()
        axes.set_title(f"{composite.name}\nsum of R {found.total():.1f}, logit {found.logit:.1f}", fontsize=9)
    return figure


def metered(adapter: Any) -> Figure:
    """Plot the image's contribution to every word by the meter, and its share by a backward pass."""
    said = limelight.generate(
        adapter, messages="Describe the picture.", media={"image": str(PICTURE)}, strategy=watched(), relevance=False
    )
    late = explained(adapter, said)
    found = words(said)
    figure = new_figure(8.6, 2.4)
    axes = figure.subplots()
    at = np.arange(len(found))
    for offset, parts, label, alpha in (
        (-0.2, word_contributions, "meter: |Φ_M| of the logit", 1.0),
        (0.2, word_shares, "backward: sum of |R|", 0.45),
    ):
        axes.bar(
            at + offset,
            [parts(late, w)["image"] for w in found],
            0.38,
            label=label,
            alpha=alpha,
            color=MODALITY_COLOURS["image"],
        )
    axes.set_xticks(at, [w.text for w in found])
    axes.set_ylabel("share of the picture", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return figure


def knob(adapter: Any) -> Figure:
    """Plot the logits of "yes" and "no", l + alpha * Phi_M, against alpha."""
    figure = new_figure(8.6, 2.6)
    alphas = np.linspace(0, 4, 50)
    asked = (
        (QUESTION, "a wrong hint, and the hat is there"),
        ("There is no pig. Is there a pig in the picture?", "a right hint"),
    )
    for axes, (question, title) in zip(figure.subplots(1, 2), asked, strict=True):
        said = limelight.generate(
            adapter,
            messages=question,
            media={"image": str(PICTURE)},
            strategy="meter",
            relevance=False,
            max_new_tokens=1,
        )
        for _, text, logit, phi in said.steps[0].candidates[:2]:
            axes.plot(alphas, logit + alphas * phi, label=f"{text.strip()}: {logit:.1f} {phi:+.2f} α")
        axes.set_title(f"{question}\n{title}", fontsize=8)
        axes.set_xlabel("α", fontsize=8)
        axes.legend(fontsize=8, frameon=False)
    return figure


def overlay_of_a_word(path: Path) -> None:
    """A word's own relevance over the image, as `limelight generate --overlay` draws it."""
    adapter = limelight.load("demo-vision")
    said = limelight.generate(adapter, "Describe the picture.", media=PICTURE, max_new_tokens=16)
    draw_word(said, shown_media(said.prompt), "hat", path)


def main() -> None:
    torch.manual_seed(0)
    overlay_of_a_word(TARGET / "overlay.png")
    adapter = limelight.load("demo-vision")
    for name, draw in (("decision", relevance_in_words), ("rules", rules_compared), ("meter", metered), ("knob", knob)):
        draw(adapter).savefig(TARGET / f"explanation-{name}.png", dpi=110)


if __name__ == "__main__":
    main()
