"""The page in headless Chromium: pointing, keyboard, side by side, light and dark, no errors, no requests, no lag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limelight.report import playable
from limelight.report.media import Media
from limelight.report.page import Case, save_page
from limelight.types import Generation, Interval, Prompt, Region, Relevance, Span, Step
from tests.browser import browser  # noqa: F401
from tests.report.examples import generation, picture, prompt, tone

Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:  # noqa: F811
    """Opens cases as a page; at the end of the test nothing may have been logged, thrown or requested."""
    troubles: list[str] = []
    contexts = []

    def open_page(*cases: Case, viewport_size: tuple[int, int] = (1280, 900), **settings: Any) -> Any:
        width, height = viewport_size
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: troubles.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: troubles.append(str(e)))
        page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(save_page(tmp_path / "page.html", list(cases)).as_uri())
        if settings.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def pair() -> Case:
    of = prompt(("image", 49, (7, 7), None), media={"image": [picture()]})
    plain = generation(of, [" Yes", ",", " there", " is", " a", " cup"], special=["</s>"])
    lime = generation(
        of, [" No", ",", " there", " is", " no", " red", " cup"], strategy="lime", seed=40, plain={0: 10, 4: 4}
    )
    return Case([plain, lime], truth="no", verdicts=[False, True], spell=lambda token: " a" if token == 4 else "?")


def word(page: Any, column: int, index: int) -> Any:
    return page.locator(f'[data-column="{column}"] [data-word="{index}"]')


def shown(page: Any, column: int = 0) -> str:
    return str(page.locator(f'[data-column="{column}"] .facts .word b').inner_text())


PIXELS = """(canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0, x = 0, y = 0;
  for (let i = 0; i < data.length / 4; i++) {
    const a = Math.max(0, data[4 * i + 3] - 40);
    sum += a; x += a * (i % canvas.width); y += a * Math.floor(i / canvas.width);
  }
  return { drawn: data.some((v) => v > 0), x: x / sum / canvas.width, y: y / sum / canvas.height };
}"""


def test_pointing_at_a_word_shows_its_heat(opened: Open) -> None:
    page = opened(Case([pair().generations[0]]))
    places = []
    for i, name in ((0, "Yes"), (2, "there"), (3, "is"), (4, "a")):
        word(page, 0, i).hover()
        assert shown(page) == name
        assert "on" in word(page, 0, i).get_attribute("class").split()
        places.append(page.locator("canvas").evaluate(PIXELS))
    # the examples' heat peaks at a quarter from the left, and at 0.2 + 0.1 * word from the top
    assert [p["x"] for p in places] == pytest.approx([0.32] * 4, abs=0.08)
    assert [p["y"] for p in places] == pytest.approx([0.27, 0.47, 0.57, 0.67], abs=0.08)
    assert page.locator(".facts .tops li").first.inner_text().split()[:1] == ["cup"]
    strength = "(nodes) => nodes.map((n) => [Number(n.style.background.match(/[0-9.]+(?=[)])/)[0]), n.textContent])"
    tinted = page.locator(".prompt span[style*=rgba]").evaluate_all(strength)
    assert max(tinted)[1] == " cup"


def test_keyboard(opened: Open) -> None:
    page = opened(pair())
    page.locator("#theme").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Yes"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown(page) == "there"
    assert "row" in page.locator('[data-column="0"] [role=status]').inner_text()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('[data-column]').dataset.column") == "1"
    assert shown(page, 1) == "there"
    page.keyboard.press("End")
    assert shown(page, 1) == "cup"
    page.keyboard.press("Home")
    assert shown(page, 1) == "No"
    page.keyboard.press("Enter")
    assert word(page, 1, 0).get_attribute("aria-pressed") == "true"
    word(page, 1, 3).hover()
    assert shown(page, 1) == "No"  # kept
    page.keyboard.press("Escape")
    assert word(page, 1, 0).get_attribute("aria-pressed") is None
    word(page, 1, 3).hover()
    word(page, 1, 2).hover()
    assert shown(page, 1) == "there"


def test_side_by_side(opened: Open) -> None:
    page = opened(pair())
    differing = [page.locator(f'[data-column="{k}"] .w.differs').all_inner_texts() for k in (0, 1)]
    assert differing == [["Yes", "a"], ["No", "no", "red"]]
    word(page, 1, 4).hover()
    facts = page.locator('[data-column="1"] .facts').inner_text()
    assert "The decoder intervened. Greedy decoding gives a here" in facts
    assert "relevance 3.2 → 2.9" in facts
    assert shown(page, 0) == "a"  # its counterpart
    assert "other" in word(page, 0, 4).get_attribute("class").split()
    assert (
        "did not intervene; greedy decoding gives the same word"
        in page.locator('[data-column="0"] .facts').inner_text()
    )
    word(page, 0, 5).hover()
    assert shown(page, 1) == "cup"
    boxes = [page.locator(f'[data-column="{k}"]').bounding_box() for k in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    page.set_viewport_size({"width": 500, "height": 800})
    boxes = [page.locator(f'[data-column="{k}"]').bounding_box() for k in (0, 1)]
    assert boxes[0]["y"] < boxes[1]["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 500


def test_light_dark_and_options(opened: Open) -> None:
    page = opened(pair(), color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    light = page.evaluate(background)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")
    word(page, 0, 0).hover()
    style = "document.querySelector('.w').style.getPropertyValue('--s')"
    before = float(page.evaluate(style))
    page.locator("#stretch").check()
    shares = page.evaluate("[...document.querySelectorAll('.w')].map((w) => Number(w.style.getPropertyValue('--s')))")
    assert (min(shares), max(shares)) == (0, 1)
    page.locator("#stretch").uncheck()
    assert float(page.evaluate(style)) == before
    ink = "document.querySelector('canvas').toDataURL().length"
    full = page.evaluate(ink)
    page.locator("#positive").check()
    assert page.evaluate(ink) != full
    assert "−" not in page.locator('[data-column="0"] .tops').inner_text()
    page.locator("#opacity").fill("0")
    assert not page.locator("canvas").first.evaluate(PIXELS)["drawn"]


RED = """(canvas) => { // where the red is, in fractions; how dark the corners are
  const {width: w, height: h} = canvas, data = canvas.getContext("2d").getImageData(0, 0, w, h).data;
  const at = (x, y) => Array.from(data.slice(4 * (y * w + x), 4 * (y * w + x) + 4));
  let [most, place] = [-1, null];
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const [r, g, b, a] = at(x, y), red = (r - b) * a;
    if (red > most) [most, place] = [red, [x / w, y / h]];
  }
  return {place, corners: [at(2, 2)[3], at(w - 3, 2)[3]]};
}"""


def test_heat_covers_the_processed_part_and_the_rest_is_dark(opened: Open) -> None:
    """The middle of a wide picture was seen; of a sound, half a second is padding behind its end."""
    crop = Region(0, (200, 100), (50, 0, 150, 100))
    halves = [Region(0, (200, 100), (x, 0, x + 100.0, 100)) for x in (0.0, 100.0)]
    spans = {
        "crop": (Span(0, 16, "image", (4, 4), region=crop),),
        "tiles": tuple(Span(16 * i, 16 * i + 16, "image", (4, 4), region=r) for i, r in enumerate(halves)),
        "sound": (Span(0, 20, "audio", None, 0.125, interval=Interval(0, 0.0, 2.0)),),
    }
    cases = []
    for name, own in spans.items():
        end = own[-1].stop
        of = Prompt({}, (f"<{name}>",) * end + (" a",), (*own, Span(end, end + 1, "text")),
                    {"audio": [tone()]} if name == "sound" else {"image": [picture(200, 100)]})  # fmt: skip
        scores = torch.zeros(end + 1)
        scores[end - 1 if name == "sound" else end - 16] = 1.0  # the upper left cell; the last position of the sound
        scores[end] = 0.1
        found = Relevance(scores, of.tokens, of.spans, 3, " cup", 1.0)
        cases.append(Case([Generation("cup", (3,), (Step(3, " cup", relevance=found, shares=found.shares()),), of)]))
    page = opened(*cases)
    found = page.locator('[data-case="0"] .stage canvas').evaluate(RED)
    assert found["place"] == pytest.approx([0.25, 0], abs=0.05)
    assert min(found["corners"]) > 100
    assert "not seen by the model (50 %)" in page.locator('[data-case="0"] .view').inner_text()
    assert page.locator('[data-case="1"] .stage canvas').count() == 1  # both tiles on one picture
    tiles = page.locator('[data-case="1"] .stage canvas').evaluate(RED)
    assert tiles["place"] == pytest.approx([0.5, 0], abs=0.05)
    assert max(tiles["corners"]) < 60
    told = page.locator('[data-case="2"] .view').inner_text()
    assert "100 % of the relevance is on padding" in told


def test_sound_video_and_tiles(opened: Open) -> None:
    of = [
        prompt(("audio", 50, None, 0.04), media={"audio": [tone()]}),
        prompt(("video", 36, (4, 3, 3), None), media={"video": [[picture() for _ in range(8)]]}),
        prompt(*[("image", 16, (4, 4), None)] * 5, ("image", 20, None, None), media={"image": [picture(200, 100)]},
               placed=False),
    ]  # fmt: skip
    page = opened(*[Case([generation(p, [" A", " dog", "."], strategy="meter")]) for p in of])
    for case in range(3):
        page.locator(f'[data-case="{case}"] [data-word="1"]').hover()
    captions = [page.locator(f'[data-case="{c}"] figcaption').all_inner_texts() for c in range(3)]
    assert "2.0 s" in captions[0][0]
    assert [c.split("\n")[0] for c in captions[1]] == ["frames 1–2", "frames 3–4", "frames 5–6", "frames 7–8"]
    assert page.locator('[data-case="0"] .band canvas').evaluate(PIXELS)["drawn"]  # the heat on the spectrogram
    assert "tile 5 of 6" in captions[2][4]
    assert "layout unknown" in captions[2][5]
    facts = page.locator('[data-case="0"] .facts').inner_text()
    assert "Not supported by the media" in facts
    assert [t.split()[0] for t in page.locator('[data-case="0"] tbody tr').all_inner_texts()] == ["dog", "mug"]
    assert page.locator('[data-case="0"] tbody tr.chosen').inner_text().split() == ["dog", "chosen", "5", "+1.2"]
    assert "from the audio" in page.locator('[data-case="0"] thead').inner_text()
    hues = [
        page.locator(f'[data-case="{c}"] [data-word="1"]').evaluate("(w) => getComputedStyle(w).backgroundColor")
        for c in range(3)
    ]
    assert len(set(hues)) == 3  # one a modality
    canvases = page.locator("canvas")
    assert all(canvases.nth(i).evaluate(PIXELS)["drawn"] for i in range(canvases.count()))


def player(page: Any, case: int = 0, column: int = 0) -> Any:
    return page.locator(f'[data-case="{case}"] [data-column="{column}"] audio')


AT = "(a) => [a.currentTime, a.paused]"


def comes_true(page: Any, script: str, seconds: float = 60) -> None:
    """Asks again until it is so (the page's policy forbids ``wait_for_function``, which evaluates text)."""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, f"not within {seconds} s: {script}"
        page.wait_for_timeout(50)


def test_a_sound_is_played_from_where_it_is_clicked(opened: Open) -> None:
    of = prompt(("audio", 50, None, 0.04), media={"audio": [tone()]})
    page = opened(Case([generation(of, [" A", " dog"]), generation(of, [" A", " cat"], strategy="lime")]))
    one, two = player(page), player(page, column=1)
    comes_true(page, "[...document.querySelectorAll('audio')].every((a) => a.readyState >= 1)")
    assert one.evaluate("(a) => a.duration") == pytest.approx(2.0, abs=0.01)
    assert one.evaluate(AT) == [0, True]  # nothing sounds by itself
    stage = page.locator('[data-column="0"] .stage')
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.75, "y": 20})
    assert stage.locator(".hand").get_attribute("data-second").startswith("1.5")
    stage.click(position={"x": box["width"] * 0.25, "y": 20})
    seconds, paused = one.evaluate(AT)
    assert (seconds >= 0.49, paused) == (True, False)
    comes_true(page, "parseFloat(document.querySelector('.head').style.left) > 24")
    page.locator('[data-column="1"] .stage').click(position={"x": 10, "y": 20})
    assert [a.evaluate(AT)[1] for a in (one, two)] == [True, False]  # one at a time
    page.mouse.move(0, 0)
    assert stage.locator(".hand").is_hidden()


def test_the_stretch_of_a_word_is_played_by_keyboard(opened: Open) -> None:
    of = prompt(("audio", 50, None, 0.04), media={"audio": [tone()]})
    page = opened(Case([generation(of, [" A", " dog"])]))
    word(page, 0, 1).focus()
    told = page.locator(".facts .when").inner_text()
    start, stop = (float(t) for t in told.removeprefix("Half of its support in the audio: ").split(" s")[0].split("–"))
    bracket = page.locator(".bracket").bounding_box()
    stage = page.locator(".stage").bounding_box()
    assert (bracket["x"] - stage["x"]) / stage["width"] == pytest.approx(start / 2, abs=0.02)
    assert bracket["width"] / stage["width"] == pytest.approx((stop - start) / 2, abs=0.02)
    reached = []
    for _ in range(12):  # the native controls lie between; how many stops they have is the browser's
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.textContent"))
        if reached[-1] == "BUTTON play":
            break
    assert "AUDIO " in reached
    page.keyboard.press("Enter")
    assert player(page).evaluate(AT)[0] >= start - 0.01
    comes_true(page, "document.querySelector('audio').paused")  # it stops by itself
    assert player(page).evaluate(AT)[0] >= stop - 0.01


def test_unplayable_media_are_reported(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    of = prompt(("audio", 50, None, 0.04), media={"audio": [tone()]})
    windows = prompt(*[("audio", 25, None, 0.04)] * 2, media={"audio": [tone()]}, placed=False)
    case = Case([generation(of, [" A", " dog"])])
    monkeypatch.setattr(playable, "LARGEST", len(playable.playable(*tone())) * 2)
    page = opened(case, Case([generation(windows, [" A"])]), case)
    assert [player(page, case=c).count() for c in range(3)] == [1, 1, 0]
    assert page.locator('[data-case="1"] figure:last-of-type figcaption').inner_text() == "audio 1, 2.0 s"
    assert "Too long to be played" in page.locator('[data-case="2"] .remark').first.inner_text()
    assert page.locator('[data-case="2"] .when button').count() == 0
    assert page.locator('[data-case="2"] canvas').first.evaluate(PIXELS)["drawn"]
    player(page).evaluate("(a) => { a.src = 'data:audio/flac;base64,AAAA'; }")
    page.locator('[data-case="0"] .remark', has_text="cannot play").first.wait_for()


def test_it_can_be_read_without_script(opened: Open) -> None:
    page = opened(pair(), java_script_enabled=False)
    text = page.locator('[data-column="1"] .answer').inner_text()
    assert text == "No, there is no red cup"
    assert page.get_by_role("button", name="cup,").count() == 2
    assert "need JavaScript" in page.locator("noscript").inner_text()


def test_no_lag_with_two_answers_of_400_words_over_4000_positions(opened: Open) -> None:
    of = prompt(("image", 2880, (48, 60), None), after=[f" t{i}" for i in range(1100)])
    told = " ".join(f"w{i}" for i in range(400))
    said = [
        generation(of, [f" w{i}" for i in range(400)], text=told, seed=s, strategy=n) for s, n in ((0, "a"), (1, "b"))
    ]
    page = opened(Case(said, Media([picture(640, 480)])))
    assert page.locator(".w").count() == 800
    added = page.evaluate(ADDED_BY_POINTING)
    assert max(added) < 250  # nodes of both columns; 2800 tell of the prompt and 400 of the answer so far, and stay
    found = page.locator(".prompt").first.evaluate("(box) => box.scrollTop")
    assert found > 0  # the prompt is scrolled to what mattered most


# `python -m bench.page` measures the time that pointing takes; here its work is counted.
ADDED_BY_POINTING = """async () => {
  const words = [...document.querySelectorAll(".w")], counts = [];
  let added = 0;
  const count = (records) => records.forEach((r) => r.addedNodes.forEach((n) => (added += 1 + (n.querySelectorAll?.("*").length ?? 0))));
  const observer = new MutationObserver(count);
  observer.observe(document.body, { childList: true, subtree: true });
  for (let i = 0; i < 100; i++) {
    added = 0;
    words[4 * i].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    count(observer.takeRecords());
    counts.push(added);
  }
  observer.disconnect();
  return counts;
}"""


AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(opened: Open, scheme: str) -> None:
    """Every rule of axe-core, best practices included, on a page with a pair, a sound and a video."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm install --prefix tests/report)")
    sound = prompt(("audio", 50, None, 0.04), media={"audio": [tone()]})
    video = prompt(("video", 36, (4, 3, 3), None), media={"video": [[picture() for _ in range(8)]]})
    others = [
        Case([generation(p, [" A", " dog", "."], strategy="meter")], question="What is it?") for p in (sound, video)
    ]
    page = opened(pair(), *others, color_scheme=scheme, bypass_csp=True)
    word(page, 1, 3).hover()
    page.evaluate(AXE.read_text(encoding="utf-8"))
    result = page.evaluate("axe.run()")
    assert [(v["id"], v["nodes"][0]["html"]) for v in result["violations"]] == []
    assert len(result["passes"]) > 30


def test_a_browser_without_decompression_shows_an_error(opened: Open, browser: Any, tmp_path: Path) -> None:  # noqa: F811
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(save_page(tmp_path / "old.html", pair()).as_uri())
    page.locator("#error:not([hidden])").wait_for()
    assert "too old" in page.locator("#error").inner_text()
    assert page.locator(".w").count() == 13
    context.close()
