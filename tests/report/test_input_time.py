"""Relevance over the time of a sound's own input, as numbers and in the figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limelight.errors import SettingError
from limelight.report.document import inputs_of
from limelight.report.input_time import over_time
from limelight.report.waveform import _of_input, waveform
from limelight.types import Interval, Relevance, Span


def relevance() -> Relevance:
    scores = torch.arange(12.0).reshape(2, 6)
    return Relevance(
        torch.zeros(1), ("a",), (Span(0, 1, "text"),), 3, media_inputs={"input_values": scores},
        media_times={"input_values": (1, 0.25)},
    )  # fmt: skip


def test_sounds_are_counted_and_cut_into_seconds() -> None:
    assert over_time(relevance()).tolist() == [0 + 1 + 2 + 3, 4 + 5]
    assert over_time(relevance(), 0.5, 1).tolist() == [13, 17, 21]
    assert over_time(relevance(), 60.0).tolist() == [15]
    for settings, told in (((1.0, 2), "sound 2"), ((0.0,), "positive number"), ((float("nan"),), "positive number")):
        with pytest.raises(SettingError, match=told):
            over_time(relevance(), *settings)


def windows(*intervals: Interval) -> Relevance:
    """Three windows of two entries of .25 s; sounds as in ``intervals``, a position each."""
    spans = tuple(Span(i, i + 1, "audio", None, 0.5, interval=x) for i, x in enumerate(intervals))
    scores = torch.arange(12.0).reshape(3, 2, 2)  # [rows, bins, frames]
    return Relevance(
        torch.zeros(len(spans)), ("a",) * len(spans), spans, 3, media_inputs={"input_features": scores},
        media_times={"input_features": (2, 0.25)},
    )  # fmt: skip


def test_the_windows_of_a_long_sound_follow_one_another() -> None:
    long = windows(Interval(0, 0.0, 1.4))  # one span for all windows
    assert over_time(long, 0.25).tolist() == [0 + 2, 1 + 3, 4 + 6, 5 + 7, 8 + 10, 9 + 11]
    with pytest.raises(SettingError, match="sound 1"):
        over_time(long, 0.25, 1)
    assert len(inputs_of(long)["input_features"]["over_time"]) == 1
    two = windows(Interval(0, 0.0, 0.8), Interval(0, 0.5, 0.8), Interval(1, 0.0, 0.4))
    assert over_time(two, 0.5).tolist() == [6, 22] and over_time(two, 0.5, 1).tolist() == [38]
    assert len(inputs_of(two)["input_features"]["over_time"]) == 2
    each = windows(*(Interval(i, 0.0, 0.5) for i in range(3)))
    assert [over_time(each, 0.5, i).tolist() for i in range(3)] == [[6], [22], [38]]
    unknown = windows(Interval(0, 0.0, 0.8), Interval(1, 0.0, 0.4))
    with pytest.raises(SettingError, match="3 rows for 2 sounds"):
        over_time(unknown)
    assert inputs_of(unknown)["input_features"]["over_time"] is None


def test_the_waveform_draws_the_input_in_place_of_the_states() -> None:
    frames = torch.zeros(1, 2, 300)  # ten milliseconds each
    frames[0, 0, 120:130], frames[0, 1, 120:130], frames[0, 0, 250:] = 0.5, -0.2, 7.0
    of_states = Relevance(torch.tensor([1.0, 0, 0, 0]), tuple("abcd"), (Span(0, 4, "audio", None, 0.5),), 3, "word")
    through = Relevance(
        of_states.scores, of_states.tokens, of_states.spans, 3, "word", media_inputs={"input_features": frames},
        media_times={"input_features": (2, 0.01)},
    )  # fmt: skip
    for end, count in ((2.0, 20), (1.97, 20), (1.23, 13), (0.3, 3), (0.01, 1)):  # what begins before the end is drawn
        assert len(_of_input(through, 0, end)[0]) == count
    samples = np.sin(np.arange(32000) / 9).astype(np.float32)  # two seconds
    for given, count, highest in ((of_states, 4, (0.0, 0.5)), (through, 20, (1.2, 1.3))):
        figure = waveform(given, samples, 16000, top=0)
        (axes,) = (a for a in figure.axes if a.get_ylabel() in ("relevance", "relevance of the input"))
        bars = axes.patches
        tallest = max(bars, key=lambda bar: bar.get_height())
        assert len(bars) == count
        assert (tallest.get_x(), tallest.get_x() + tallest.get_width()) == pytest.approx(highest)
        assert ("input" in axes.get_ylabel()) == (given is through)
