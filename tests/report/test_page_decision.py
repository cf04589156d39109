"""The page of answers with a decision, in headless Chromium: the decision first, one panel for all answers, on a phone too."""

from __future__ import annotations

import re

import pytest

from limelight.report.page import Case
from limelight.report.words import rather_than
from tests.browser import browser  # noqa: F401
from tests.report.examples import relevance
from tests.report.test_page_browser import Open, opened, pair, word  # noqa: F401


def together() -> Case:
    plain, lime = pair().generations
    one, other = (relevance(plain.prompt, t, text, seed=t) for t, text in ((1, " No"), (2, " Yes")))
    return Case([plain, lime], truth="no", verdicts=[False, True], decisions=[rather_than(one, other)])


def test_the_decision_is_shown_first_and_a_words_own_relevance_on_a_click(opened: Open) -> None:  # noqa: F811
    page = opened(together())
    panel = page.locator(".panel .facts")
    assert panel.locator(".word b").inner_text() == "No rather than Yes"
    totals = panel.locator(".totals").inner_text()
    assert "from the image" in totals
    numbers = [float(n.replace("−", "-")) for n in re.findall(r"[+−][\d.]+(?:e-?\d+)?", totals)]
    most = max(abs(n) for n in numbers)
    assert numbers[0] == pytest.approx(
        sum(numbers[1:]), abs=0.03 * most
    )  # what the input leaves is named: the sum is right
    assert ("not traced" in totals) == (len(numbers) == 4)
    assert page.locator(".panel figcaption").all_inner_texts() == ["original", "where the evidence lies"]
    assert page.locator(".panel canvas").count() == 1  # one map for all answers
    assert page.locator(".panel .stage.plain img").count() == 1  # the original beside it
    assert "part of this relevance" in page.locator(".panel .strength").inner_text()
    word(page, 0, 3).hover()
    assert panel.locator(".word b").inner_text() == "No rather than Yes"  # pointing changes nothing
    word(page, 1, 0).click()
    assert panel.locator(".word b").inner_text() == "No"
    assert "The decoder" in panel.inner_text()
    page.locator(".decision .w").click()
    assert panel.locator(".word b").inner_text() == "No rather than Yes"
    page.locator("#positive").check()  # draws again
    assert panel.locator(".word b").inner_text() == "No rather than Yes"
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_phone_shows_the_answers_before_the_explanations(opened: Open) -> None:  # noqa: F811
    page = opened(together())
    assert page.locator("#about").evaluate("(d) => d.open")
    small = opened(*[together()] * 4, viewport_size=(390, 844))
    assert not small.locator("#about").evaluate("(d) => d.open")
    assert small.evaluate("document.documentElement.scrollHeight") <= 6 * 844
