"""The values that flow through everything: spans that hold something, relevance that is read in several ways."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from limelight.errors import SettingError
from limelight.types import MODALITIES, Generation, Prompt, Record, Relevance, Sample, Span, Step

SPANS = (
    Span(0, 2, "text"),
    Span(2, 8, "image", (2, 3)),
    Span(8, 9, "text"),
    Span(9, 13, "audio", seconds=0.04),
    Span(13, 21, "video", (2, 2, 2)),
    Span(21, 24, "text"),
)


def relevance(scores: Tensor | None = None, **changes: Any) -> Relevance:
    scores = torch.arange(24.0) - 6 if scores is None else scores
    return Relevance(scores, tuple(f"w{i}" for i in range(len(scores))), SPANS, target=5, **changes)


def test_modalities_are_in_the_order_of_transformers_type_ids() -> None:
    assert MODALITIES == ("text", "image", "video", "audio")


@pytest.mark.parametrize(
    "bad",
    [
        (3, 3, "image"), (4, 3, "image"), (-1, 3, "image"), (0, 6, "image", (2, 2)), (0, 6, "smell"),
        (0, 6, "image", (2, 3), None, 3), (0, 6, "image", (2, 3), None, -1),
    ],
)  # fmt: skip
def test_a_span_that_holds_nothing_or_does_not_fit_raises(bad: Any) -> None:
    with pytest.raises(SettingError) as caught:
        Span(*bad)
    assert caught.value.hint


def test_values_are_frozen() -> None:
    for value in (SPANS[0], relevance(), Step(1, "a"), Sample("1", "?"), Record("1", "yes")):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


@pytest.mark.parametrize(
    "spans",
    [
        SPANS[:-1], (*SPANS[:-1], Span(21, 23, "text")), (Span(0, 3, "text"), *SPANS[1:]), (Span(1, 24, "text"),), (),
        (Span(0, 12, "text"), Span(0, 12, "text")),
    ],
)  # fmt: skip
def test_relevance_needs_a_partition(spans: tuple[Span, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        Relevance(torch.zeros(24), ("w",) * 24, spans, target=0)
    assert caught.value.hint


def test_relevance_needs_a_word_a_position_and_one_dimension() -> None:
    with pytest.raises(SettingError):
        Relevance(torch.zeros(24), ("w",) * 23, SPANS, target=0)
    with pytest.raises(SettingError):
        Relevance(torch.zeros(1, 24), ("w",) * 24, SPANS, target=0)


def test_shares_are_absolute_and_sum_to_one() -> None:
    r = relevance()
    whole = float(r.scores.abs().sum())
    assert r.share("image") == pytest.approx(float(r.scores[2:8].abs().sum()) / whole)
    assert r.share("audio") == pytest.approx(float(r.scores[9:13].abs().sum()) / whole)
    shares = r.shares()
    assert set(shares) == {"text", "image", "video", "audio"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert relevance(torch.zeros(24)).share("image") == 0.0


def test_totals_are_signed() -> None:
    r = relevance()
    assert r.total("image") == pytest.approx(float(r.scores[2:8].sum()))
    assert r.total() == pytest.approx(float(r.scores.sum()))


def test_sinks_are_left_out_of_shares_totals_and_tops_but_not_of_scores() -> None:
    scores = torch.ones(24)
    scores[0] = 1000.0
    r = relevance(scores)
    assert r.share("text") > 0.95
    clean = r.without_sinks()
    assert clean.sinks == (0,)
    assert clean.share("text") == pytest.approx(5 / 23)
    assert clean.total() == pytest.approx(23.0)
    assert clean.top(1)[0][0] != 0
    assert r.top(1)[0] == (0, "w0", 1000.0)
    assert torch.equal(clean.scores, scores)
    assert relevance(scores, sinks=(0,)).share("text") == clean.share("text")


def test_scores_on_the_grid_on_seconds_and_on_frames() -> None:
    r = relevance()
    assert torch.equal(r.on_grid(), r.scores[2:8].reshape(2, 3))
    assert torch.equal(r.on_grid(0, "video"), r.scores[13:21].reshape(2, 2, 2))
    scores, each = r.on_seconds()
    assert torch.equal(scores, r.scores[9:13])
    assert each == 0.04


def test_a_margin_is_not_on_the_grid() -> None:
    spans = (Span(0, 8, "image", (2, 4), margin=1),)
    r = Relevance(torch.arange(8.0), ("w",) * 8, spans, target=0)
    assert r.on_grid().tolist() == [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize("call", [lambda r: r.on_grid(1), lambda r: r.on_grid(-1), lambda r: r.on_seconds(1)])
def test_a_span_that_is_not_there_raises(call: Any) -> None:
    with pytest.raises(SettingError) as caught:
        call(relevance())
    assert caught.value.hint


def test_an_unknown_layout_raises() -> None:
    spans = (Span(0, 5, "image"), Span(5, 8, "audio"))
    r = Relevance(torch.zeros(8), ("w",) * 8, spans, target=0)
    for call in (r.on_grid, r.on_seconds):
        with pytest.raises(SettingError) as caught:
            call()
        assert caught.value.hint


def test_top_is_by_size_and_can_be_held_to_a_modality() -> None:
    r = relevance()
    assert [i for i, _, _ in r.top(3)] == [23, 22, 21]
    assert [i for i, _, _ in r.top(2, "image")] == [2, 3]
    assert r.top(2, "image")[0] == (2, "w2", -4.0)
    assert len(r.top(100, "audio")) == 4


def test_spans_of_a_modality() -> None:
    assert relevance().spans_of("text") == (SPANS[0], SPANS[2], SPANS[5])
    assert len(SPANS[1]) == 6


def test_a_generations_shares_are_means_over_the_steps_that_have_them() -> None:
    steps = (
        Step(1, "a", shares={"text": 0.4, "image": 0.6}), Step(2, "b"), Step(3, "c", shares={"text": 1.0, "image": 0.0})
    )  # fmt: skip
    prompt = Prompt({}, ("w",) * 24, SPANS)
    generation = Generation("abc", (1, 2, 3), steps, prompt)
    assert generation.shares() == pytest.approx({"text": 0.7, "image": 0.3})
    assert str(generation) == "abc"
    assert Generation("", (), (), prompt).shares() == {}
