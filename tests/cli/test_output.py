"""Documents, and which picture is drawn for which medium. No model is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from limelight.calibration import flag_rule
from limelight.cli import output
from limelight.errors import SettingError
from limelight.report.media import Media
from limelight.types import Clip, Prompt, TakenView
from tests.report.examples import generation, picture, prompt, relevance, tone


def test_media_are_read_as_the_model_gets_them(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    picture(40, 20).save(file)
    samples, rate = tone(1.0, 8000)
    of = Prompt({}, (), (), {"image": [str(file)], "audio": [(samples, rate)], "video": [[picture(), picture()]]})
    media = output.shown_media(of)
    assert media.sounds[0][1] == 8000
    assert len(media.sounds[0][0]) == 8000
    assert len(media.videos[0]) == 2


@pytest.mark.parametrize(
    ("spans", "media"),
    [
        (("image", 16, (4, 4), None), {"image": [picture()]}),
        (("audio", 50, None, 0.04), {"audio": [tone(2.0, 16000)]}),
        (("video", 36, (4, 3, 3), None), {"video": [[picture() for _ in range(8)]]}),
    ],
)
def test_every_medium_is_drawn(spans: Any, media: dict[str, Any], tmp_path: Path) -> None:
    said = generation(prompt(spans, media=media), [" A", " dog"])
    shown = output.shown_media(said.prompt)
    word = output.draw_word(said, shown, "dog", tmp_path / "o.png")
    assert word.text == "dog"
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.size[0] > 300


def test_nothing_to_draw(tmp_path: Path) -> None:
    said = generation(prompt(("image", 4, (2, 2), None)), [" A"], details=False)
    with pytest.raises(SettingError, match="no relevance"):
        output.draw_word(said, output.shown_media(said.prompt), None, tmp_path / "o.png")


def test_a_document_is_plain_json() -> None:
    from dataclasses import replace

    said = generation(prompt(("image", 4, (2, 2), None)), [" A", " cup"], strategy="lime")
    steps = (replace(said.steps[0], logprob=float("nan")), *said.steps[1:])
    document = output.document(replace(said, steps=steps), scores=True)
    text = json.dumps(document, allow_nan=False)
    assert document["steps"][0]["logprob"] is None
    assert len(document["words"][1]["scores"]) == len(said.prompt.tokens) + 1
    assert json.loads(text)["spans"][1]["grid"] == [2, 2]
    assert "scores" not in output.document(said)["words"][0]


def test_a_document_has_grounding_by_token_word_and_sentence() -> None:
    said = generation(prompt(("image", 16, (4, 4), None)), [" A", " cup", ".", " Yes"], strategy="meter")
    own = [(6.0, None, False), (1.5, 7.0, True), (9.0, None, False), (5.0, 6.0, False)]
    steps = tuple(
        replace(s, grounding=z, rival_grounding=r, flagged=f, p_supported=0.5, grounding_by_modality={"image": z})
        for s, (z, r, f) in zip(said.steps, own, strict=True)
    )
    found = output.document(replace(said, steps=steps, flag=flag_rule(None)))
    json.dumps(found, allow_nan=False)
    assert [s["grounding"] for s in found["steps"]] == [6.0, 1.5, 9.0, 5.0]
    assert [s["rival_grounding"] for s in found["steps"]] == [None, 7.0, None, 6.0]
    assert found["steps"][0]["grounding_by_modality"] == {"image": 6.0}
    assert [(w["grounding"], w["flagged"], w["p_supported"]) for w in found["words"]][1] == (1.5, True, 0.5)
    assert [(s["text"], s["grounding"], s["margin"], s["flagged"]) for s in found["sentences"]] == [
        ("A cup.", 3.75, -5.5, True),
        ("Yes", 5.0, -1.0, False),
    ]
    assert found["flag"]["default"] is True
    plain = output.document(generation(prompt(("image", 16, (4, 4), None)), [" A"]))
    assert plain["words"][0]["grounding"] is None and plain["flag"] == {} and plain["steps"][0]["grounding"] is None


def test_place() -> None:
    assert output.place(relevance(prompt(("image", 49, (7, 7), None)), 1, "x", peak=(0.72, 0.15))).startswith(
        "row 6 of 7"
    )
    assert output.place(relevance(prompt(("audio", 5, None, None)), 1, "x")) == "position 2 of 5"
    assert output.place(relevance(prompt(("audio", 50, None, 0.04)), 1, "x")) == "0.48–0.52 s"
    film = relevance(prompt(("video", 36, (4, 3, 3), None)), 1, "x")
    assert output.place(film).startswith("step 4 of 4, row ")
    frames = Clip(tuple(picture() for _ in range(8)), tuple(i / 2 for i in range(8)))
    assert output.place(film, Media(videos=[frames])).startswith("frames 7–8 · 3.0–3.5 s, row ")
    tiles = relevance(prompt(*[("image", 9, (3, 3), None)] * 2, placed=False), 1, "x")
    assert output.place(tiles, Media([picture()])).startswith("image 1, tile ")
    assert output.place(relevance(prompt(("image", 5, None, None)), 1, "x")) == ""


def test_views_are_reported() -> None:
    made = generation(prompt(("image", 4, (2, 2), None)), [" A", " cup"])
    views = (
        TakenView("image", 0, answer="no", margin=-1.0, between=("yes", "no")),
        TakenView(
            "image", 0, (1.04, 2.0, 3.0, 4.0), answer="yes", margin=2.0, between=("yes", "no"), weight=1.0, evidence=0.5
        ),
    )
    made = replace(made, steps=(replace(made.steps[0], views=views), *made.steps[1:]))
    steps = output.document(made)["steps"]
    assert steps[0]["views"][1] == {
        "kind": "image", "source": 0, "box": [1.0, 2.0, 3.0, 4.0], "interval": None, "answer": "yes", "margin": 2.0,
        "between": ("yes", "no"), "weight": 1.0, "evidence": 0.5,
    } and all("views" not in s for s in steps[1:])  # fmt: skip
    assert output.view_lines(made)[1] == "view 2: image, pixels 1, 2, 3, 4: 'yes', yes over no by 2.00, weight 1"
