"""The views on the page: each on the picture, with its answer and margin."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from limelight.report.looks import looks, place_of
from limelight.report.media import Media
from limelight.report.page import Case, render_page
from limelight.types import Clip, Generation, Prompt, Span, Step, TakenView

SPANS = (Span(0, 1, "text"), Span(1, 5, "image", (2, 2)), Span(5, 6, "text"))
PICTURE = Image.new("RGB", (200, 100), "red")
PICTURE.paste("blue", (100, 0, 200, 100))
WHOLE = TakenView("image", 0, None, None, " no", -1.5, (" yes", " no"), 0.0, 0.1)
CROP = TakenView("image", 0, (100.0, 50.0, 150.0, 100.0), None, " yes", 2.25, (" yes", " no"), 1.0, 3.0)


def answer(*views: TakenView) -> Generation:
    prompt = Prompt({}, tuple("abcdef"), SPANS, {"image": [PICTURE]})
    return Generation("yes", (1,), (Step(1, " yes", views=views),), prompt, "look-again")


def test_a_view_is_shown_with_its_box_and_image() -> None:
    (found,) = looks(answer(WHOLE, CROP), Media([PICTURE]))
    whole, crop = found["views"]
    assert found["text"] == "yes" and "box" not in whole and crop["box"] == [50.0, 50.0, 25.0, 50.0]
    assert (crop["answer"], crop["margin"], crop["between"], crop["weight"]) == ("yes", 2.25, ["yes", "no"], 1.0)
    drawn = Image.open(io.BytesIO(base64.b64decode(crop["src"].partition(",")[2])))
    assert drawn.size == (50, 50) and drawn.convert("RGB").getpixel((25, 25)) == (0, 0, 255)
    assert place_of(CROP) == "image, pixels 100, 50, 150, 100" and place_of(WHOLE) == "image, whole"


def test_sounds_and_films() -> None:
    sound = TakenView("audio", 0, None, (2.0, 3.0), "yes", 1.0, ("yes", "no"), 1.0)
    (found,) = looks(answer(sound), Media(sounds=[(np.zeros(64000, np.float32), 16000)]))
    assert found["views"][0]["box"] == [50.0, 0.0, 25.0, 100.0] and place_of(sound) == "audio, 2.00-3.00 s"
    film = TakenView("video", 0, (0.0, 0.0, 20.0, 20.0), (1.0, 2.0), "yes", 1.0, ("yes", "no"), 1.0)
    frames = tuple(Image.new("RGB", (40, 40), (60 * i, 0, 0)) for i in range(4))
    (shown,) = looks(answer(film), Media(videos=[Clip(frames, (0.0, 1.5, 2.0, 3.0))]))
    assert shown["views"][0]["box"] == [0.0, 0.0, 50.0, 50.0] and shown["views"][0]["src"].startswith("data:image/png")


def test_the_page_shows_them_and_nothing_where_there_are_none() -> None:
    page = render_page(Case([answer(WHOLE, CROP)], question="Is there a cup?"))
    assert "Looked again before <b>yes</b>: 2 views" in page
    assert "yes − no: +2.25" in page and "counts 100 % of the answer" in page
    assert 'style="left:50.0%;top:50.0%;width:25.0%;height:50.0%"' in page
    assert "Looked again" not in render_page(Case([answer()], question="Is there a cup?"))


def test_text_of_views_is_escaped() -> None:
    page = render_page(Case([answer(WHOLE, replace(CROP, answer="<script>x</script>"))]))
    assert "<script>x" not in page


@pytest.mark.parametrize("source", [1, 5])
def test_media_that_are_not_at_hand_are_left_out(source: int) -> None:
    (found,) = looks(answer(replace(CROP, source=source)), Media([PICTURE]))
    assert "src" not in found["views"][0]
