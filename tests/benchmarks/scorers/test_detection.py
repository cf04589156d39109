"""Units of an answer and their scores, from answers that carry evidence; no model."""

from __future__ import annotations

import numpy as np
import pytest

from limelight.benchmarks.compare import compare_blocks
from limelight.benchmarks.scorers.detection import (
    MEASURES,
    Unit,
    answer_unit,
    detection,
    first_mentions,
    position_bins,
    scores_at,
    spoken_words,
    words_among,
)
from limelight.benchmarks.scorers.measure import evaluate, mean_block
from limelight.benchmarks.scorers.wer import basic, invented_words
from limelight.types import Record


def record(text: str, pieces: list[str], scores: list[float | None], target: object = None, **meta: object) -> Record:
    assert "".join(pieces) == text
    ends = np.cumsum([len(p) for p in pieces]).tolist()
    return Record("a", text, target, {"evidence": {"text": text, "ends": ends, "scores": {"z": scores}}, **meta})


def test_first_mentions_are_scored_by_the_token_where_they_begin() -> None:
    said = record(
        "A dog, a Cat and a dog", ["A ", "d", "og, ", "a ", "Cat ", "and ", "a ", "dog"], [9, 1, 2, 9, 4, 9, 9, 8]
    )
    units = list(first_mentions(said, words_among(["dog", "cat"]), ["dog"]))
    assert [(u.word, u.position, u.invented, u.scores["z"]) for u in units] == [
        ("dog", 1, False, 1),
        ("cat", 4, True, 4),
    ]


def test_a_word_of_several_tokens_has_their_mean() -> None:
    said = record("good mor-ning", ["good ", "mor", "-", "ning"], [1, 2, 5, 3], "good morning")
    evidence = said.meta["evidence"]
    assert scores_at(evidence, 5, 8) == (1, {"z": 2.0})
    assert scores_at(evidence, 5, 13) == (1, {"z": pytest.approx(10 / 3)})
    assert np.isnan(scores_at({**evidence, "scores": {"z": [1, None, 5, 3]}}, 5, 13)[1]["z"])


def test_words_of_a_transcript_are_aligned() -> None:
    said = record("Play loud music.", ["Play ", "loud ", "music."], [3, 1, 2], "play music")
    units = list(spoken_words(said, invented_words, basic))
    assert [(u.word, u.invented) for u in units] == [("play", False), ("loud", True), ("music", False)]
    assert invented_words("", "thank you") == [True, True]
    assert invented_words("turn left", "turn right now") == [False, True, True]
    assert invented_words("hello", "") == []


def test_the_answer_is_the_word_yes_or_no() -> None:
    said = record("Well, No.", ["Well, ", "No", "."], [1, 7, 2], "yes", cluster="p", split="s")
    (unit,) = answer_unit(said, "no", "yes")
    assert (unit.position, unit.invented, unit.scores["z"], unit.cluster, unit.split) == (1, True, 7, "p", "s")
    assert not list(answer_unit(said, None, "yes"))
    assert not list(answer_unit(Record("a", "no"), "no", "yes"))


def test_answers_without_evidence_have_no_units() -> None:
    bare = Record("a", "a dog", ["dog"])
    assert not list(first_mentions(bare, words_among(["dog"]), ["dog"]))
    assert not list(spoken_words(Record("a", "a dog", "a dog"), invented_words, basic))


def test_the_probe_is_listed_with_the_scores() -> None:
    said = record("a dog", ["a ", "dog"], [1, 2], probe={"dog": -3.5})
    (unit,) = first_mentions(said, words_among(["dog"]), [])
    assert unit.scores["probe"] == -3.5


def units(n: int = 200, seed: int = 0) -> list[Unit]:
    """z tells; log-probability tells less; invented units come later; a third score is missing once."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        position = int(rng.integers(0, 12))
        invented = bool(rng.random() < position / 14)
        z, logp = rng.standard_normal(2) - np.array([3.0, 0.8]) * invented
        scores = {"z": z, "log-probability": logp, "lost": float("nan") if i == 3 else 1.0}
        made.append(Unit(f"{i}", f"picture {i // 2}", "ab"[i % 2], "wx"[i % 2], position, invented, scores))
    return made


def test_a_block_a_score_with_controls_and_the_combination() -> None:
    blocks = detection("captions", units())
    names = [b.name.removeprefix("captions/") for b in blocks if b.name.startswith("captions/")]
    assert names == ["z", "log-probability", "position", "word frequency", "log-probability + z"]
    found = evaluate(blocks, resamples=50)
    assert found["captions/z/AUROC"].value > 0.95 > found["captions/log-probability/AUROC"].value > 0.6
    assert found["captions/log-probability + z/AUROC"].value > 0.95
    assert found["captions/position/AUROC"].value > 0.7
    like = found["captions/position/AUROC at like positions"]
    assert abs(like.value - 0.5) < 0.12 < found["captions/position/AUROC"].value - like.value
    for m in MEASURES:
        got = found[f"captions/z/{m.name}"]
        assert got.low <= got.value <= got.high
    assert set(found) >= {"a/z/AUROC", "b/z/AUROC at like positions"}
    assert "a/z/AUPR" not in found


def test_two_scores_are_compared_on_the_same_resamples() -> None:
    by_name = {b.name: b for b in detection("captions", units(), by_split=False)}
    (auroc, *_) = compare_blocks(by_name["captions/log-probability"], by_name["captions/z"], resamples=200)
    assert auroc.name == "captions/log-probability/AUROC"
    assert 0 < auroc.low < auroc.difference < auroc.high
    single = evaluate([by_name["captions/z"]], resamples=200)["captions/z/AUROC"]
    assert auroc.b == single.value
    assert mean_block("m", list(by_name.values())).measures == ()  # ranks of different sets have no common mean here


def test_nothing_to_tell_apart() -> None:
    same = [u for u in units() if not u.invented]
    assert detection("captions", same) == []
    assert detection("captions", []) == []


def test_position_bins_hold_about_as_many_each() -> None:
    np.testing.assert_array_equal(position_bins(np.array([4, 7, 4, 10])), [0, 1, 0, 2])
    bins = position_bins(np.arange(100))
    assert np.bincount(bins.astype(int)).tolist() == pytest.approx([20] * 5, abs=1)
