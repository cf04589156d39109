"""Sounds in a page: what is played is what was heard, in FLAC or WAV, and a page does not grow without bound."""

from __future__ import annotations

import base64
import io
import sys
import wave

import numpy as np
import pytest

from limelight.report import playable
from limelight.report.page import Case, render_page
from tests.report.examples import generation, prompt, tone
from tests.report.test_page import data_of


def decoded(url: str, kind: str) -> io.BytesIO:
    head, data = url.split(",", 1)
    assert head == f"data:audio/{kind};base64"
    return io.BytesIO(base64.b64decode(data))


def test_flac_holds_the_samples_to_16_bits() -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    samples, rate = tone()
    found, found_rate = soundfile.read(decoded(playable.playable(samples, rate), "flac"), dtype="float32")
    assert found_rate == rate
    assert np.abs(found - samples).max() < 2 / 32768


def test_wav_without_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    samples, rate = tone()
    with wave.open(decoded(playable.playable(samples, rate), "wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (rate, 1, 2)
        found = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    assert found == pytest.approx(samples, abs=1e-4)


def test_what_is_too_loud_is_scaled_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    samples, rate = tone()
    with wave.open(decoded(playable.playable(3 * samples, rate), "wav")) as file:
        found = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    assert found == pytest.approx(samples / np.abs(samples).max(), abs=1e-4)


def test_the_sounds_of_a_page_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([generation(prompt(("audio", 50, None, 0.04), media={"audio": [tone()]}), [" A", " dog"])])
    each = len(playable.playable(*tone()))
    monkeypatch.setattr(playable, "LARGEST", 2 * each + 1)
    sounds = [c["media"]["sounds"][0] for c in data_of(render_page([case] * 4))["cases"]]
    assert [("src" in s, "unheard" in s) for s in sounds] == [(True, False)] * 2 + [(False, True)] * 2
    assert all("peaks" in s and "spectrogram" in s for s in sounds)  # they are shown all the same


def test_intervals_of_words_are_passed_to_the_player() -> None:
    of = prompt(("audio", 50, None, 0.04), ("audio", 25, None, 0.04), media={"audio": [tone(), tone(1.0)]})
    said = generation(of, [" A", " dog"])
    word = data_of(render_page(said))["cases"][0]["columns"][0]["words"][1]
    assert [w[0] for w in word["w"]] == [0, 1]
    relevance = said.steps[1].relevance
    assert relevance is not None
    for (_, start, stop), span, seconds in zip(word["w"], relevance.spans_of("audio"), (2.0, 1.0), strict=True):
        support = relevance.scores[span.start : span.stop].clamp(min=0)
        assert 0 <= start < stop <= seconds
        assert support[round(start / 0.04) : round(stop / 0.04)].sum() >= 0.5 * support.sum()
