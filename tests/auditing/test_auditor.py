"""``limelight.audit``: the scores that the meter gave while the same answer was generated, whoever wrote it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import limelight
from limelight.auditing.auditor import audit, checked_rows
from limelight.auditing.rows import Row
from limelight.errors import DataError, MediaError, PromptError, SettingError
from limelight.models.adapter import Adapter
from limelight.report.words import word_flagged, word_grounding, words
from limelight.types import EARLIER_ANSWERS
from tests.auditing.test_forward import close
from tests.tiny import snapshot

EXAMPLES = Path(limelight.__file__).parent / "demo" / "vision" / "examples"


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return limelight.load("demo-vision")


def picture(number: int = 0) -> Image.Image:
    return Image.open(EXAMPLES / f"E-wrong-00{number}.png")


def asked(number: int, words: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": picture(number)}, {"type": "text", "text": words}]}


QUESTIONS = ["Describe the picture.", "There is a dog. Describe the picture.", "Is there a cup in the picture?"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_generating_the_answer(adapter: Adapter, batch_size: int) -> None:
    said = [
        limelight.generate(adapter, messages=[asked(i, q)], strategy="meter", max_new_tokens=24, relevance=False)
        for i, q in enumerate(QUESTIONS)
    ]
    rows = [
        {"image": picture(i), "prompt": q, "answer": g.text}
        for i, (q, g) in enumerate(zip(QUESTIONS, said, strict=True))
    ]
    before = snapshot(adapter.model)
    found = audit(adapter, rows, batch_size=batch_size)
    assert snapshot(adapter.model) == before
    for one, g in zip(found, said, strict=True):
        own = g.steps[:-1] if g.steps[-1].text == "</s>" else g.steps  # text holds no end
        close(one.steps, own)
        assert one.text == one.generation.text == g.text
        assert [w.text for w in one.words] == [w.text for w in words(g) if not w.punctuation]
        for word in one.words:
            assert word_grounding(one.answer, word) == pytest.approx(word_grounding(g, word), abs=2e-3)
            assert word_flagged(one.answer, word) == word_flagged(g, word)
        assert one.sentences[-1].grounding is not None
        assert one.generation.prompt.spans == g.prompt.spans
    with_end = audit(adapter, [{**rows[0], "token_ids": list(said[0].token_ids)}])[0]
    close(with_end.steps, said[0].steps)


def test_numbers_of_an_answer(adapter: Adapter) -> None:
    answer = "A picture of a dog. There is no cup."
    (found,) = limelight.audit(adapter, [{"id": 3, "image": picture(), "prompt": QUESTIONS[0], "answer": answer}])
    numbers = found.summary
    assert found.id == "3"
    assert (numbers["words"], numbers["sentences"], numbers["thought_tokens"]) == (9, 2, 0)
    assert numbers["flagged_words"] == len(found.flagged) == sum(w["flagged"] for w in found.to_json()["words"])
    scores = [word_grounding(found.answer, w) for w in found.words]
    assert numbers["grounding"] == pytest.approx(np.mean([s for s in scores if s is not None]))
    assert numbers["margin"] == min(s.margin for s in found.sentences if s.margin is not None) <= 0
    assert numbers["logprob"] == pytest.approx(np.mean([s.logprob for s in found.steps]))
    told = found.to_json()
    assert "".join(t["text"] for t in told["tokens"]).strip() == answer
    assert [s["text"] for s in told["sentences"]] == ["A picture of a dog.", "There is no cup."]
    assert sum(numbers["contributions"].values()) == pytest.approx(1, abs=1e-4)


def test_thoughts_are_scored_and_are_no_part_of_the_answer(adapter: Adapter) -> None:
    row = {"image": picture(), "prompt": QUESTIONS[0], "answer": "<think> a dog. </think> A picture of a cup."}
    (found,) = audit(adapter, [row])
    assert found.text == "A picture of a cup."
    assert found.summary["thought_tokens"] > 3 and len(found.steps) == len(found.answered)
    assert [w.text for w in found.words] == ["A", "picture", "of", "a", "cup"]
    assert "".join(s.text for s in found.steps).strip() == row["answer"]
    assert [t.get("thought", False) for t in found.to_json()["tokens"]] == [not a for a in found.answered]
    want = limelight.audit(adapter, [{**row, "token_ids": [s.token for s in found.steps]}])[0]
    close(found.steps, want.steps)
    (whole,) = audit(adapter, [row], thoughts=())
    assert whole.summary["thought_tokens"] == 0 and "dog" in [w.text for w in whole.words]
    (own,) = audit(adapter, [{**row, "answer": "(( a dog. )) A cup."}], thoughts=[("((", "))")])
    assert own.text == "A cup."


def test_turns_are_each_scored_behind_what_stood_before(adapter: Adapter) -> None:
    talk = [
        asked(0, "Is there a cup?"),
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Is there a dog?"},
    ]
    row = {"messages": [*talk, {"role": "assistant", "content": "no"}]}
    first, last = audit(adapter, [row], turns="all")
    assert [first.row.turn, last.row.turn] == [0, 1]
    (alone,) = audit(adapter, [{"messages": [*talk[:1], {"role": "assistant", "content": "yes"}]}])
    close(first.steps, alone.steps)
    assert EARLIER_ANSWERS not in first.summary["contributions"]
    part = last.summary["contributions"][EARLIER_ANSWERS]
    assert 0 < part < 0.5
    close([one.steps[0] for one in audit(adapter, [row])], last.steps)


@pytest.mark.parametrize("strategy", ["meter", "relevance-contrastive", "lime-cached", "reconsider", "greedy"])
def test_the_meter_knows_earlier_answers_as_an_audit_does(adapter: Adapter, strategy: str) -> None:
    talk = [
        asked(0, "Is there a cup?"),
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Describe the picture."},
    ]
    fresh = [asked(1, "Is there a dog?")]
    said, other = limelight.generate_many(
        adapter, requests=[talk, fresh], strategy=strategy, meter=True, max_new_tokens=4, min_new_tokens=2
    )
    (found,) = audit(adapter, [{"messages": [*talk, {"role": "assistant", "content": said.text}]}])
    for step, want in zip(said.steps[: len(found.steps)], found.steps, strict=True):
        if strategy == "lime-cached" and step.intervened:
            continue  # measured on the optimised keys and values
        assert dict(step.contributions) == pytest.approx(dict(want.contributions), abs=2e-4)
    assert said.steps[0].contributions[EARLIER_ANSWERS] > 0
    assert all(EARLIER_ANSWERS not in s.contributions for s in other.steps)


def test_sound() -> None:
    hearing = limelight.load("demo-audio")
    rng = np.random.default_rng(0)
    sound = (rng.normal(0, 0.1, 16000).astype(np.float32), 16000)
    ask = [
        {"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": "What do you hear?"}]}
    ]
    said = limelight.generate(hearing, messages=ask, strategy="meter", max_new_tokens=12, relevance=False)
    (found,) = audit(hearing, [{"audio": sound, "prompt": "What do you hear?", "answer": said.text}])
    close(found.steps, said.steps[: len(found.steps)])
    assert len(said.steps) - len(found.steps) <= 1
    assert set(found.steps[0].grounding_by_modality) == {"audio"}


def test_all_rows_are_checked_before_anything_runs() -> None:
    rows = [{"prompt": "q", "answer": "a"}, {"prompt": "q"}, "text", {"prompt": "q", "answer": "a", "image": "no.png"}]
    with pytest.raises(DataError, match="3 of 4 rows cannot be audited") as caught:
        audit(None, rows)  # no model is touched
    assert all(f"row {n}:" in caught.value.message for n in (2, 3, 4))
    with pytest.raises(DataError, match="the id 'x' occurs 2 times"):
        checked_rows([{"id": "x", "prompt": "q", "answer": "a"}] * 2)
    with pytest.raises(DataError, match="there are none"):
        audit(None, [])
    with pytest.raises(DataError, match="expected rows, got one dict"):
        audit(None, rows[0])
    for wrong in ({"batch_size": 0}, {"composite": "none"}, {"thoughts": [("a",)]}):
        with pytest.raises(SettingError):
            audit(None, rows[:1], **wrong)
    with pytest.raises(SettingError, match="unknown turns"):
        audit(None, rows[:1], turns="first")


def test_what_only_the_model_can_refuse(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    row = {"image": tmp_path / "broken.png", "prompt": "q", "answer": "a"}
    with pytest.raises(MediaError, match="not an image"):
        audit(adapter, [row])
    with pytest.raises(PromptError, match="a placeholder for media"):
        audit(adapter, [{"image": picture(), "prompt": "q", "answer": "an <image>"}])
    (ready,) = checked_rows([{"image": picture(), "prompt": QUESTIONS[0], "answer": "yes"}])
    assert isinstance(ready, Row)
    assert audit(adapter, [ready])[0].row == ready
