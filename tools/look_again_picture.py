"""python -m tools.look_again_picture: draws docs/images/look-again.png, the views of one picture with what each says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import limelight
from limelight.demo.canvases import canvas_questions

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "look-again.png"
NUMBER = 4  # of the question on dev
EACH, GAP, LINE = 230, 14, 40


def main() -> None:
    question = canvas_questions("dev", "3x3/3", NUMBER + 1)[NUMBER]
    picture = question.canvas.image()
    adapter = limelight.load("demo-vision")
    strategy = limelight.look_again(5, when="always", where="attnlrp-positive", search="quarters")
    answer = limelight.generate(
        adapter, messages=question.text, media={"image": picture}, strategy=strategy, max_new_tokens=2, relevance=False
    )
    views = answer.steps[0].views
    sheet = Image.new("RGB", (len(views) * (EACH + GAP) + GAP, EACH + LINE + LINE + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    pen.text((GAP, 10), f"{question.text} {answer.text}", "black", font)
    for i, view in enumerate(views):
        left = GAP + i * (EACH + GAP)
        sheet.paste(_shown(picture, view, views), (left, LINE))
        text = f"{i + 1}: “{view.answer.strip()}” (yes over no: {view.margin:+.1f})"
        pen.text((left, LINE + EACH + 8), text, "#0b57d0" if view.weight else "black", font)
    sheet.quantize(96).save(TARGET, optimize=True)


def _shown(picture: Any, view: Any, views: Any) -> Any:
    if view.box is not None:
        return picture.crop(tuple(round(x) for x in view.box)).resize((EACH, EACH))
    whole = picture.copy()
    pen = ImageDraw.Draw(whole)
    for i, other in enumerate(views):
        if other.box is not None:
            left, top, right, bottom = (round(x) for x in other.box)
            pen.rectangle(
                (left + i, top + i, right - i, bottom - i), outline="#0b57d0" if other.weight else "white", width=2
            )
    return whole.resize((EACH, EACH))


if __name__ == "__main__":
    main()
