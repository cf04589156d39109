"""Answers side by side: where they part, and the exact difference of the two logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import limelight
from limelight.decoding.compare import END, decided
from limelight.errors import SettingError

QUESTION = "There is no hat. Is there a hat in the picture?"


@pytest.fixture(scope="module")
def adapter() -> Any:
    return limelight.load("demo-vision")


@pytest.fixture(scope="module")
def found(adapter: Any) -> Any:
    chosen = ("greedy", limelight.relevance_contrastive(preset="questions"), "dola")
    return limelight.compare(
        adapter, messages=QUESTION, media=limelight.example("hat"), strategies=chosen, max_new_tokens=4
    )


def test_the_decision_is_the_difference_of_both_attributions(adapter: Any, found: Any) -> None:
    assert [a.text for a in found.answers] == ["no", "yes", "no"]
    assert found.decisions[1] is None  # equal answers
    why = found.decision
    assert why.explains == "yes rather than no"
    yes, no = (
        limelight.attribute(adapter, found.prompt, t)
        for t in (found.answers[1].token_ids[0], found.answers[0].token_ids[0])
    )
    assert torch.allclose(why.scores, yes.scores - no.scores, atol=1e-5)
    assert why.logit == pytest.approx(yes.logit - no.logit, abs=1e-4)
    named = limelight.attribute(adapter, found.prompt, "yes", against="no")
    assert torch.equal(named.scores, why.scores)


def test_every_answer_is_explained_and_metered(found: Any) -> None:
    assert all(s.relevance is not None for a in found.answers for s in a.steps)
    assert [a.strategy for a in found.answers] == ["greedy", "relevance-contrastive", "dola"]
    assert all(s.grounding is not None for s in found.answers[0].steps)
    lines = str(found).splitlines()
    assert lines[1].split() == ["relevance-contrastive", "yes"]
    assert lines[3].startswith("why yes rather than no: text -") and "no -" in lines[3]


def test_later_words_are_decided_after_the_shared_beginning(adapter: Any) -> None:
    chosen = ("greedy", limelight.relevance_contrastive(preset="captions"))
    both = limelight.compare(
        adapter,
        messages="Describe the picture.",
        media=limelight.example("pizza"),
        strategies=chosen,
        max_new_tokens=16,
    )
    why = both.decision
    assert why is not None
    assert why.explains == "pizza rather than mushroom"
    begun = len(both.prompt.tokens)
    assert "".join(why.tokens[begun:]).split() == ["A", "picture", "of", "a", "pig", "and", "a"]
    shorter = both.answers[0]
    assert decided(adapter, shorter, shorter) is None


def test_the_end_of_an_answer_is_named(adapter: Any) -> None:
    chosen = ("greedy", limelight.relevance_contrastive(preset="captions"))
    both = limelight.compare(
        adapter, messages="Describe the picture.", media=limelight.example("hat"), strategies=chosen, max_new_tokens=16
    )
    words = {both.answers[0].text, both.answers[1].text}
    assert len(words) == 2
    assert both.decision is not None
    assert both.decision.explains != END


def test_views_of_a_comparison(found: Any, tmp_path: Path) -> None:
    html = found._repr_html_()
    assert "yes rather than no" in html and "<details>" in html and "strongly for" in html
    page = found.save(tmp_path / "both.html").read_text(encoding="utf-8")
    assert QUESTION in page
    plain = found.to_dict()
    json.dumps(plain, allow_nan=False)
    assert plain["decisions"][0]["word"] == "yes" and plain["decisions"][1] is None
    table = pytest.importorskip("pandas") and found.to_pandas()
    assert set(table["strategy"]) == {"greedy", "relevance-contrastive", "dola"}


def test_nothing_to_compare(adapter: Any) -> None:
    with pytest.raises(SettingError, match="no strategies"):
        limelight.compare(adapter, messages="x", strategies=())


@pytest.mark.parametrize(
    ("target", "against", "message"),
    [("yes", "yes", "same token"), ("", "no", "no tokens"), ("yes", 10**9, "outside"), (5, 5, "same token")],
)
def test_what_cannot_be_explained(adapter: Any, found: Any, target: Any, against: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        limelight.attribute(adapter, found.prompt, target, against=against)


def test_the_models_best_token_against_another(adapter: Any, found: Any) -> None:
    why = limelight.attribute(adapter, found.prompt, against="yes")
    assert why.explains == "no rather than yes"
    assert why.logit > 0
