"""Search: the order of views, the budget, and when it ends."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from limelight.decoding.looking.fields import Field, Part
from limelight.decoding.looking.regions import Windows
from limelight.decoding.looking.search import OVERLAP, Search, View, given_proposals, long_windows
from limelight.errors import SettingError

EMPTY = torch.tensor([0.0, 4.0, 0.0])
SEEN = torch.tensor([6.0, 0.0, 0.0])


def search(kind: str, views: int, scores: np.ndarray | None = None, side: float = 25.0, **more: object) -> Search:
    part = Part(np.ones((4, 4)) if scores is None else scores, (0.0, 0.0, 100.0, 100.0))
    field = Field("image", 0, (100.0, 100.0), (part,), part.box)
    settings = {"sure": 0.9, "telling": 0.5, "overlap": 0.0, "long": None, "empty": EMPTY, **more}
    return Search(
        kind,
        views,
        Windows(sizes=(1.0,), context=0.0),
        fields=[field],
        sides=[side],
        taken=[View(None, EMPTY)],
        **settings,
    )  # type: ignore[arg-type]


def take(found: Search, logits: list[torch.Tensor]) -> list[tuple[float, float, float, float]]:
    proposals = found.next()
    for p, x in zip(proposals, logits, strict=False):
        found.taken.append(View(p, x))
    return [p.box for p in proposals]


def test_windows_come_in_one_round() -> None:
    found = search("windows", 3)
    assert len(take(found, [EMPTY] * 4)) == 2 and found.next() == []


def test_quarters_by_relevance_then_within_the_best_crop() -> None:
    scores = np.zeros((4, 4))
    scores[:2, 2:], scores[2:, :2] = 2.0, 1.0
    found = search("quarters", 9, scores)
    first = take(found, [EMPTY, EMPTY, EMPTY, torch.tensor([0.0, 3.0, 1.0])])
    assert first[:2] == [(50.0, 0.0, 100.0, 50.0), (0.0, 50.0, 50.0, 100.0)] and len(first) == 4
    second = take(found, [EMPTY] * 4)
    assert len(second) == 4 and all(b[0] >= 50 and b[3] <= 50 for b in second)  # quarters of the most relevant one
    assert found.next() == []  # the budget is spent


def test_a_sure_answer_ends_the_search() -> None:
    found = search("quarters", 9)
    take(found, [EMPTY, SEEN, EMPTY, EMPTY])
    assert found.next() == []
    alike = search("quarters", 9)
    take(alike, [EMPTY * 2] * 4)  # sure, but of what it says of nothing, too
    assert len(alike.next()) == 4


def test_quarters_end_at_full_detail_and_at_the_budget() -> None:
    found = search("quarters", 99, side=60.0)
    assert len(take(found, [EMPTY] * 4)) == 4 and found.next() == []  # quarters of 50 pixels are finer than 60
    assert len(search("quarters", 3).next()) == 2


def test_auto_searches_only_where_the_first_view_is_uninformative() -> None:
    silent, telling = search("auto", 5), search("auto", 5)
    telling.taken[0] = View(None, SEEN)
    assert [b[2] - b[0] for b in take(silent, [EMPTY] * 4)] == [50.0] * 4
    assert [b[2] - b[0] for b in take(telling, [EMPTY] * 4)] == [25.0] * 4


def test_small_parts_grow_to_what_the_model_sees() -> None:
    found = search("windows", 2, side=40.0)
    found.given = given_proposals([(0.4, 0.4, 0.5, 0.5)], "image", 0, (100.0, 100.0))
    assert take(found, [EMPTY]) == [pytest.approx((25, 25, 65, 65))]
    assert found.next() == []


def test_long_audio_is_covered_to_its_end() -> None:
    found = [p.box for p in long_windows(0, 20.0, 4.0)]
    starts = [0.0, *(b[0] for b in found)]
    assert all(b[2] - b[0] == pytest.approx(4.0) for b in found) and found[-1][2] == pytest.approx(20.0)
    assert all(b - a <= 4.0 * (1 - OVERLAP) + 1e-9 for a, b in pairwise(starts))
    assert [p.box for p in long_windows(0, 4.5, 4.0)] == [(0.5, 0.0, 4.5, 1.0)]


def long_sound(kind: str, views: int, mass: float = 1.0, **windows: object) -> Search:
    """A search over nine seconds for a model that hears four; its windows have been heard, the last second matters."""
    part = Part(mass * np.eye(1, 9, 8), (0.0, 0.0, 9.0, 1.0))
    sound = Field("audio", 0, (9.0, 1.0), (part,), part.box)
    found = Search(kind, views, Windows(**windows), sure=0.9, telling=0.5, overlap=0.0, fields=[sound], sides=[0.0],
                   long=(0, 9.0, 4.0), taken=[View(None, EMPTY)], empty=EMPTY)  # type: ignore[arg-type]  # fmt: skip
    assert [b[:3:2] for b in take(found, [EMPTY] * 2)] == [(2.5, 6.5), (5.0, 9.0)]
    return found


def test_the_windows_of_a_long_sound_are_searched_like_crops() -> None:
    """No part is longer than what the model hears."""
    found = long_sound("quarters", 9)
    assert [p.box[:3:2] for p in found.next()] == [(7.0, 9.0), (5.0, 7.0)]  # of the window with the relevance
    first = long_sound("quarters", 9, mass=0.0)
    first.taken[0] = View(None, SEEN * 0.3)  # the first one alone says something
    assert [p.box[:3:2] for p in first.next()] == [(0.0, 2.0), (2.0, 4.0)]


def test_no_window_is_longer_than_what_the_model_hears() -> None:
    (found,) = long_sound("windows", 4, seconds=(3.0,), context=1.0).next()
    start, _, stop, _ = found.box
    assert stop - start == 4.0 and start >= 0.0 and stop <= 9.0


def test_given_parts_of_a_long_sound_are_heard_beside_its_windows() -> None:
    found = long_sound("windows", 3)
    found.given = given_proposals([(0.0, 0, 0.1, 1), (0.9, 0, 1, 1)], "audio", 0, (9.0, 1.0))
    assert [p.box[0] for p in found.next()] == pytest.approx([0.0, 8.1]) and found.next() == []


def film(views: int, side: float, rate: float, scores: np.ndarray | None = None) -> Search:
    """A search over a film of eight frames in eight seconds."""
    edges = tuple(float(i) for i in range(9))
    part = Part(np.ones((8, 2, 2)) if scores is None else scores, (0.0, 0.0, 100.0, 100.0), edges)
    seen = Field("video", 0, (100.0, 100.0), (part,), part.box, edges, rate)
    return Search("quarters", views, Windows(), sure=0.9, telling=0.5, overlap=0.0, fields=[seen], sides=[side], long=None,
                  taken=[View(None, EMPTY)], empty=EMPTY)  # fmt: skip


@pytest.mark.parametrize(("views", "parts"), [(3, 2), (4, 3), (5, 4), (9, 4)])
def test_a_film_with_more_frames_is_searched_in_time(views: int, parts: int) -> None:
    found = film(views, side=100.0, rate=10.0)
    proposals = found.next()
    assert all(p.box == (0.0, 0.0, 100.0, 100.0) for p in proposals)
    times = sorted(p.interval for p in proposals if p.interval)
    assert [t[0] for t in times] == pytest.approx([8 * i / parts for i in range(parts)])  # all of it is seen
    assert times[-1][1] == 8.0


def test_few_further_frames_are_searched_in_few_parts() -> None:
    """More parts than that would grow to much the same frames."""
    found = film(9, side=100.0, rate=1.2)
    assert [p.interval for p in found.next()] == [pytest.approx((0.0, 8 / 1.2)), pytest.approx((8 - 8 / 1.2, 8.0))]


def test_within_a_part_of_a_film_then_within_its_frames() -> None:
    scores = np.zeros((8, 2, 2))
    scores[5, 1, 0] = 1.0
    found = film(13, side=50.0, rate=4.0, scores=scores)  # four times as many frames, four times as many pixels
    first = found.next()
    assert first[0].box == (0.0, 50.0, 50.0, 100.0) and {p.interval for p in first} == {(0.0, 8.0)}
    found.taken += [View(p, EMPTY) for p in first]
    second = found.next()
    assert second[0].interval == (4.0, 6.0) and {p.box for p in second} == {first[0].box} and len(second) == 4


def test_a_film_without_further_frames_is_searched_in_its_frames_only() -> None:
    found = film(5, side=50.0, rate=0.0)
    assert {p.interval for p in found.next()} == {(0.0, 8.0)}
    assert film(5, side=100.0, rate=0.0).next() == []


def test_no_view_of_a_film_has_fewer_frames_than_the_first() -> None:
    found = film(2, side=100.0, rate=4.0)
    found.given = given_proposals([(0, 0, 1, 1, 0.45, 0.5), (0, 0, 1, 1, 0.99, 1)], "video", 0, (100, 100), (0.0, 8.0))
    (one,) = found.next()
    assert one.interval == pytest.approx((2.8, 4.8))
    late = film(2, side=100.0, rate=4.0)
    late.given = given_proposals([(0, 0, 1, 1, 0.99, 1)], "video", 0, (100, 100), (0.0, 8.0))
    assert late.next()[0].interval == pytest.approx((6.0, 8.0))
    with pytest.raises(SettingError, match="for films"):
        given_proposals([(0, 0, 1, 1, 0.4, 0.5)], "image", 0, (100, 100))
