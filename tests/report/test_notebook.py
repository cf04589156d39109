"""What a notebook shows: no script, all escaped, heat where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from limelight import display
from limelight.calibration import flag_rule
from limelight.report.media import Media
from limelight.report.notebook import generation_html, relevance_html, shares_html, wave_picture
from limelight.types import Clip
from tests.report.examples import generation, picture, prompt, relevance, tone


def test_generation() -> None:
    of = prompt(("image", 49, (7, 7), None), media={"image": [picture()]})
    html = generation_html(generation(of, [" A", " <cup>", "."], strategy="lime"))
    assert "&lt;cup&gt;" in html
    assert "<script" not in html
    assert "intervened" in html
    assert "data:image/png" in html
    assert "image 7" in html
    assert "(no words)" in generation_html(generation(of, []))
    assert "data:image" not in generation_html(generation(of, [" A"], details=False))


def test_the_meters_parts_are_not_passed_off_as_shares() -> None:
    of = prompt(("image", 49, (7, 7), None), media={"image": [picture()]})
    said = "part of the logit, by the meter"
    metered = generation_html(generation(of, [" A", " cup"], strategy="meter", details=False))
    assert f"each a {said}" in metered
    assert f"25% image; ({said})" in metered
    both = generation_html(generation(of, [" A", " cup"], strategy="meter"))
    assert said not in both
    assert "(share of the relevance)" in both


def test_a_missing_file_shows_the_heat_alone() -> None:
    of = prompt(("image", 49, (7, 7), None), media={"image": ["/nowhere/x.png"]})
    assert "data:image/png" in generation_html(generation(of, [" A"]))


def test_relevance() -> None:
    found = relevance(prompt(("image", 16, (4, 4), None)), 1, " <b>")
    html = relevance_html(found)
    assert "&lt;b&gt;" in html
    assert html.count("<img") == 1
    assert relevance_html(found, Media([picture()])) != html
    assert "rgba(196,30,42" in html
    assert "rgba(25,91,184" in html
    video = relevance(prompt(("video", 36, (4, 3, 3), None)), 1, "x")
    assert relevance_html(video, Media(videos=[[picture()] * 8])).count("<img") == 4
    sound = relevance(prompt(("audio", 50, None, 0.04), media={"audio": [tone()]}), 1, "x")
    assert relevance_html(sound).count("<img") == 1
    with_wave = relevance_html(sound, Media(sounds=[tone()]))
    assert "audio, 2.0 s" in with_wave
    assert with_wave != relevance_html(sound)
    clip = Clip(tuple(picture() for _ in range(8)), tuple(i / 2 for i in range(8)))
    assert "frames 3–4 · 1.0–1.5 s" in relevance_html(video, Media(videos=[clip]))
    long = relevance(prompt(("image", 4, (2, 2), None), after=[f" {i}" for i in range(900)]), 1, "x")
    assert "more …" in relevance_html(long)


def test_shares() -> None:
    assert "width:25.00%" in shares_html({"text": 0.25, "image": 0.75})


def test_a_waveform_is_loud_where_the_sound_is() -> None:
    samples, rate = tone()
    drawn = np.asarray(wave_picture(samples, rate).convert("L")) < 128  # the tone swells around 1.2 of 2 s
    height = drawn.sum(0)
    assert height[:40].max() < 10
    assert height[180:205].min() > 40
    assert wave_picture(np.zeros(10, np.float32), rate).size == (320, 80)


def test_results_display_as_html_or_as_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    of = prompt(("image", 4, (2, 2), None))
    answer, where = generation(of, [" A", " cup"]), relevance(of, 1, "x")
    assert answer._repr_html_() == generation_html(answer)
    assert where._repr_html_() == relevance_html(where)
    monkeypatch.setattr(display, "_formatters", {})
    assert answer._repr_html_() is None and where._repr_html_() is None


def test_grounding_and_flags_are_shown_without_colour() -> None:
    said = generation(prompt(("image", 49, (7, 7), None)), [" A", " cup"], strategy="meter")
    steps = tuple(replace(s, grounding=z, flagged=z < 4) for s, z in zip(said.steps, (6.0, 1.25), strict=True))
    html = generation_html(replace(said, steps=steps, flag=flag_rule(None)))
    assert html.count('<sup title="flagged">⚑</sup>') == 1
    assert "grounding 1.25" in html and "not calibrated for this model" in html
