"""The page as text and data: complete, compact, escaped, readable without script."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limelight.calibration import Calibration, flag_rule
from limelight.errors import SettingError
from limelight.report.media import Media
from limelight.report.page import Case, render_page, save_page
from limelight.report.payload import TOP_TEXT, case_payload
from limelight.report.words import rather_than
from limelight.types import Generation, Prompt, Relevance
from tests.report.examples import generation, picture, prompt, relevance, tone


def vision() -> Prompt:
    return prompt(("image", 49, (7, 7), None), media={"image": [picture()]})


def pair() -> tuple[Generation, Generation]:
    of = vision()
    plain = generation(of, [" Yes", ",", " a", " cup", "."], special=["</s>"])
    lime = generation(of, [" No", ",", " no", " cup", "."], strategy="lime", seed=40, plain={0: 10, 2: 4})
    return plain, lime


def data_of(html: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(block(html, "data"))
    return value


def block(html: str, name: str) -> bytes:
    """What a script element of the page holds."""
    found = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', html)
    assert found is not None
    return zlib.decompress(base64.b64decode(found.group(1)))


def test_the_page_holds_the_payloads_heat_in_order() -> None:
    case = Case(pair())
    html = render_page([case, case])
    words = [w for c in case_payload(case)["columns"] for w in c["words"] if "h" in w]
    assert block(html, "heat") == b"".join(base64.b64decode(w["h"]) for w in words) * 2
    told = [w["h"] for c in data_of(html)["cases"] for k in c["columns"] for w in k["words"] if "h" in w]
    assert told == [49] * len(words) * 2


def test_heat_is_the_relevance() -> None:
    plain, _ = pair()
    shown = case_payload(Case([plain]))
    word = shown["columns"][0]["words"][3]
    assert word["t"] == "cup"
    relevance = plain.steps[3].relevance
    assert relevance is not None
    span = relevance.spans_of("image")[0]
    expected = relevance.scores[span.start : span.stop].numpy()
    heat = np.frombuffer(base64.b64decode(word["h"]), np.int8)
    assert heat.astype(float) / 127 * word["m"] == pytest.approx(
        np.clip(expected, -word["m"], word["m"]), abs=word["m"] / 127
    )
    assert word["sh"]["image"] == pytest.approx(relevance.share("image"), abs=1e-3)
    top = relevance.top(3, "text")
    prompt_length = len(plain.prompt.tokens)
    keys = [i if i < prompt_length else -1 - (i - prompt_length) for i, _, _ in top]
    assert [k for k, _ in word["x"][:3]] == keys
    assert [v for _, v in word["x"][:3]] == pytest.approx([v for _, _, v in top], rel=1e-3)
    assert len(word["x"]) <= TOP_TEXT


def test_side_by_side_marks_and_pairs() -> None:
    plain, lime = pair()
    shown = case_payload(Case([plain, lime], spell=lambda token: f"<{token}>"))
    one, two = shown["columns"]
    assert [w["t"] for w in one["words"] if w.get("d")] == ["Yes", "a"]
    assert [w["t"] for w in two["words"] if w.get("d")] == ["No", "no"]
    assert [4, 4] in two["pairs"]
    assert two["words"][2]["g"] == "<4>"
    assert "g" not in two["words"][0]  # greedy's own choice: nothing was changed
    assert two["words"][1]["same"] == 1
    assert two["words"][0]["l"] == {"relevance": [3.2, 2.9], "kl": [0.0, 0.01]}
    assert two["settings"] == "lr 0.01 · steps 7"
    assert (one["start"], two["start"]) == (0, 0)


def decision(of: Generation) -> Relevance:
    one, other = (relevance(of.prompt, t, text, seed=t) for t, text in ((1, " No"), (2, " Yes")))
    return rather_than(one, other)


def test_a_decision_is_shown_first_and_not_compared() -> None:
    plain, lime = pair()
    why = decision(plain)
    html = render_page(Case([plain, lime], verdicts=[False, True], decisions=[why]))
    case = data_of(html)["cases"][0]
    assert case["together"] is True
    columns = case["columns"]
    assert [c["name"] for c in columns] == ["greedy", "lime", "decision"]
    (word,) = columns[2]["words"]
    assert word["t"] == "No rather than Yes"
    assert "d" not in word
    assert word["to"] == {m: pytest.approx(why.total(m), rel=1e-3) for m in ("text", "image")}
    assert [w["t"] for w in columns[0]["words"] if w.get("d")] == ["Yes", "a"]
    assert "together" in html and "No rather than Yes" in html
    with pytest.raises(SettingError, match="one word rather than another"):
        Case([plain], decisions=[relevance(plain.prompt, 1, "No")])


def test_a_map_of_little_relevance_is_drawn_fainter_and_named() -> None:
    plain, _ = pair()
    first = plain.steps[0].relevance
    assert first is not None
    scores = first.scores.clone()
    image = first.spans_of("image")[0]
    scores[image.start : image.stop] *= 0.01
    weak = replace(plain, steps=(replace(plain.steps[0], relevance=replace(first, scores=scores)), *plain.steps[1:]))
    strong, faint = (case_payload(Case([g]))["columns"][0]["words"][0]["st"] for g in (plain, weak))
    assert (strong[1], faint[1]) == ("strong", "weak")
    assert strong[0] == 1.0 > faint[0] > 0.1


def test_without_spelling_an_unseen_token_is_its_number() -> None:
    _, lime = pair()
    words = case_payload(Case([lime]))["columns"][0]["words"]
    assert words[2]["g"] == "#4"


def test_meter_steps_are_shown_without_relevance() -> None:
    from dataclasses import replace

    said = generation(vision(), [" A", " cup"], strategy="meter")
    steps = tuple(replace(s, relevance=None) for s in said.steps)
    words = case_payload(Case([replace(said, steps=steps)]))["columns"][0]["words"]
    assert words[1]["f"] == 1
    assert words[0]["c"] == [[" A", 5.0, 1.2, 3], [" mug", 4.1, -0.3, 0]]  # 1: said, 2: greedy's
    assert "h" not in words[0]
    assert words[0]["p"] > 0


def test_sound_video_and_tiles() -> None:
    sound = case_payload(
        Case([generation(prompt(("audio", 50, None, 0.04), media={"audio": [tone()]}), [" A", " dog"])])
    )
    assert sound["views"][0]["seconds"] == 0.04
    assert sound["media"]["sounds"][0]["seconds"] == 2.0
    assert len(base64.b64decode(sound["media"]["sounds"][0]["peaks"])) == 1200
    of = prompt(("video", 36, (4, 3, 3), None), media={"video": [[picture() for _ in range(8)]]})
    video = case_payload(Case([generation(of, [" A", " dog"])]))
    assert [label for _, label in video["views"][0]["frames"]] == [
        "frames 1–2",
        "frames 3–4",
        "frames 5–6",
        "frames 7–8",
    ]
    tiles = case_payload(
        Case(
            [generation(prompt(*[("image", 4, (2, 2), None)] * 3), [" A"])],
        )
    )
    assert [v["at"] for v in tiles["views"]] == [0, 4, 8]


class Outside(HTMLParser):
    """Everything in a page that names something to load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data") or name.startswith("on"):
                self.found.append((tag, name, value or ""))


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render_page(Case(pair(), truth="no", verdicts=[False, True], question="Is there a cup?"), note="A note.")
    parser = Outside()
    parser.feed(html)
    assert parser.found == [("link", "href", "data:,")]
    assert "http" not in re.sub(r"Content-Security-Policy|http-equiv", "", html)
    assert "default-src 'none'" in html
    assert "@import" not in html


def test_hostile_words_stay_words() -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    said = generation(vision(), [f" {bad}", " <b>x</b>"], strategy=bad)
    html = render_page(Case([said], title=bad, question=bad, truth=bad, note=bad), title=bad, note=bad)
    assert html.count("<script") == 3
    assert "<img src=x" not in html
    assert "<b>x</b>" not in html
    assert data_of(html)["cases"][0]["columns"][0]["words"][0]["t"] == bad


def test_words_can_be_read_without_script() -> None:
    html = render_page(Case(pair(), verdicts=[False, None]))
    assert re.search(r'<button[^>]*class="w differs image"[^>]*>No</button>', html)
    assert re.search(r'aria-label="cup, \d+% image"', html)
    assert "differs from the other answer" in html
    assert "✗ wrong" in html
    assert "✓ right" not in html


def test_save_page(tmp_path: Path) -> None:
    path = save_page(tmp_path / "out.html", list(pair()), title="Two cases")
    html = path.read_text(encoding="utf-8")
    assert len(data_of(html)["cases"]) == 2
    with pytest.raises(SettingError, match="cannot write"):
        save_page(tmp_path / "out.txt", list(pair()))
    with pytest.raises(SettingError, match="at least one case"):
        render_page([])


def test_what_a_case_refuses() -> None:
    plain, _ = pair()
    other = generation(prompt(("image", 4, (2, 2), None)), [" x"])
    with pytest.raises(SettingError, match="at least one answer"):
        Case([])
    with pytest.raises(SettingError, match="2 verdicts for 1"):
        Case([plain], verdicts=[True, False])
    with pytest.raises(SettingError, match="prompts of"):
        Case([plain, other])


def test_an_empty_answer_makes_a_page() -> None:
    assert "(no words)" in render_page(generation(vision(), []))


def test_the_page_stays_small() -> None:
    of = prompt(("image", 2880, (48, 60), None), after=[f" t{i}" for i in range(1100)])
    said = generation(of, [f" w{i}" for i in range(60)])
    each = (len(render_page(Case([said], Media([picture(640, 480)])))) - len(render_page(generation(of, [" w"])))) / 59
    assert each < 4000  # bytes a word at 4000 positions of noise, which packs badly: 400 words in 1.4 MB


def test_the_meaning_of_the_shading_is_stated() -> None:
    """Shares of the relevance where there is one; else the meter's contributions to the logit, under their own name."""
    of = vision()
    both = generation(of, [" A", " cup"], strategy="meter")
    alone = generation(of, [" A", " cup"], strategy="meter", details=False)
    columns = [case_payload(Case([g]))["columns"][0] for g in (both, alone)]
    for column in columns:
        assert column["contributions"] == {"text": 0.75, "image": 0.25}
        assert all(w["co"] == {"text": 0.75, "image": 0.25} for w in column["words"])
    assert [c["by_meter"] for c in columns] == [False, True]
    assert columns[0]["shares"] == {m: round(v, 4) for m, v in both.shares().items()}
    assert all(w["p"] == round(1 - w["sh"]["text"], 4) for w in columns[0]["words"])
    assert columns[1]["shares"] == {}
    assert all("sh" not in w and w["p"] == 0.25 for w in columns[1]["words"])
    said = "(of the logits, by the meter)"
    assert said in render_page(alone)
    assert said not in render_page(both)
    assert re.search(r"<b>25 %</b> image", render_page(alone))


def test_grounding_and_the_flag_rule_are_shown() -> None:
    """Also without colour: by a mark, in words to a screen reader, and a rule that is a default says so."""
    said = generation(vision(), [" A", " cup", "."], strategy="meter")
    own = [
        {"grounding": 6.0, "rival_grounding": None, "flagged": False, "p_supported": None},
        {
            "grounding": 1.25,
            "rival_grounding": 7.0,
            "flagged": True,
            "grounding_by_modality": {"image": 2.0, "audio": 1.0},
        },
        {"grounding": 5.0, "p_supported": 0.875, "flagged": False},
    ]
    steps = tuple(replace(s, **more) for s, more in zip(said.steps, own, strict=True))
    told = case_payload(Case([replace(said, steps=steps, flag=flag_rule(None))]))["columns"][0]
    assert [w.get("gr") for w in told["words"]] == [
        {"grounding": 6.0},
        {"grounding": 1.25, "rival_grounding": 7.0, "grounding image": 2.0, "grounding audio": 1.0},
        {"grounding": 5.0, "p_supported": 0.875},
    ]
    assert [w.get("f") for w in told["words"]] == [None, 1, None]
    page = render_page(replace(said, steps=steps, flag=flag_rule(None)))
    assert "flagged: not supported by the media" in page
    assert "not calibrated for this model" in page and 'class="mark flagged"' in page
    fitted = Calibration("m", 3.5, (0.0,), (0.5,), labels="a labelled file", date="2026-01-02")
    assert "calibrated on a labelled file, 2026-01-02" in render_page(
        replace(said, steps=steps, flag=flag_rule(fitted))
    )
    assert 'id="flags"' not in render_page(said)


def test_a_page_opens_on_the_first_flagged_word_and_no_stop_is_flagged() -> None:
    said = generation(prompt(("image", 16, (4, 4), None)), [" A", " dog", "."], strategy="audit")
    steps = tuple(replace(s, flagged=s.text in (" dog", "."), grounding=1.0) for s in said.steps)
    column = case_payload(Case([replace(said, steps=steps)]))["columns"][0]
    assert column["audited"] and column["start"] == 1
    assert [w.get("f") for w in column["words"]] == [None, 1, None]
