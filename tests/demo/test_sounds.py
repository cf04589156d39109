"""The recordings: the same from the same seed, other splits other sounds, events where they are said to be."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from limelight.demo import sounds
from limelight.demo.sounds import EVENTS, PLACES, SAMPLES, SPLITS, USUAL, WORDS, recording, voices
from limelight.demo.synthesis import MAKERS, RATE, background, make
from limelight.errors import DataError


@pytest.mark.parametrize("kind", ["events", "speech", "noise", "silence"])
def test_a_recording_is_fixed_by_its_key(kind: sounds.Kind) -> None:
    one, two = recording("test", kind, "medium", 5), recording("test", kind, "medium", 5)
    assert one == two
    first = one.samples()
    assert np.array_equal(first, two.samples())
    assert first.shape == (SAMPLES,)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    assert not np.array_equal(first, recording("test", kind, "medium", 6).samples())


def test_splits_share_no_recording() -> None:
    seen = [recording(split, "events", "clear", i).samples().tobytes() for split in SPLITS for i in range(4)]
    assert len(set(seen)) == len(seen)
    held = set(sounds._HELD_OUT.values())
    assert not held & set(sounds._NOISES)
    assert "train" not in sounds._HELD_OUT


@pytest.mark.parametrize("name", EVENTS)
def test_every_sound_is_sound_and_varies(name: str) -> None:
    one, two = (make(name, np.random.default_rng(seed), RATE) for seed in (0, 1))
    assert one.shape == two.shape == (RATE,)
    assert np.isfinite(one).all()
    assert 0.8 < np.sqrt(np.mean(one**2)) < 1.05
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.5
    assert one[0] == 0


def test_the_world_is_complete() -> None:
    assert set(MAKERS) == set(EVENTS)
    assert len(EVENTS) == len(set(EVENTS)) == 16
    assert {len(names) for names in PLACES.values()} == {4}
    assert set(USUAL) | set(USUAL.values()) < set(WORDS)
    for kind in ("white", "pink", "brown", "hum", "swell", "gusts"):
        assert np.sqrt(np.mean(background(np.random.default_rng(0), kind, 8000) ** 2)) == pytest.approx(1, abs=0.01)


def test_events_are_where_their_spans_are() -> None:
    for index in range(12):
        one = recording("dev", "events", "clear", index)
        assert 1 <= len(one.events) <= 3
        assert list(one.events) == sorted(one.events, key=lambda e: e.onset)
        assert len(set(one.names)) == len(one.names)
        power = one.samples().astype(np.float64) ** 2
        inside = np.zeros(SAMPLES, bool)
        for on, off in one.spans.values():
            assert 0 <= on < off < sounds.SECONDS
            inside[round(on * RATE) : round(off * RATE)] = True
        assert power[inside].mean() > 4 * power[~inside].mean()
        gaps = np.diff([e.onset for e in one.events])
        assert (gaps >= 0.499).all()


def test_worse_recordings_hold_less_of_the_sound() -> None:
    def ratio(clarity: sounds.Clarity) -> float:
        values = []
        for index in range(8):
            one = recording("dev", "events", clarity, index)
            power = one.samples().astype(np.float64) ** 2
            inside = np.zeros(SAMPLES, bool)
            for on, off in one.spans.values():
                inside[round(on * RATE) : round(off * RATE)] = True
            values.append(power[inside].mean() / power[~inside].mean())
        return float(np.median(values))

    assert ratio("clear") > ratio("medium") > ratio("poor")


def test_phrases_match_their_set() -> None:
    for index in range(20):
        usual, broken, digits = (
            recording("dev", "speech", "clear", index, phrase=p).names for p in ("usual", "broken", "digits")
        )
        pairs = list(itertools.pairwise(usual))
        assert any(USUAL.get(a) == b for a, b in pairs)
        pairs = list(itertools.pairwise(broken))
        assert any(a in USUAL and b != USUAL[a] for a, b in pairs)
        assert not any(USUAL.get(a) == b for a, b in pairs)
        assert 2 <= len(digits) <= 4
        assert not set(digits) & set(USUAL)
        assert len(set(digits)) == len(digits)  # no word is said twice


def test_voices_differ_between_splits_and_training_ships_none() -> None:
    dev, test = voices("dev"), voices("test")
    assert set(dev) == set(test) == set(WORDS)
    assert {len(v) for v in dev.values()} == {3}
    assert {len(v) for v in test.values()} == {4}
    assert not {x.tobytes() for v in dev.values() for x in v} & {x.tobytes() for v in test.values() for x in v}
    assert voices("demo")["one"][0].tobytes() == test["one"][0].tobytes()
    with pytest.raises(DataError, match="not shipped"):
        recording("train", "speech", "clear", 0)
    listing = json.loads((Path(sounds.VOICES) / "dev.json").read_text())
    assert "espeak-ng" in listing["note"]


def test_a_bank_of_ones_own_is_used() -> None:
    bank = {word: [np.full(1600 + 10 * i, 0.5, np.float32)] for i, word in enumerate(WORDS)}
    one = recording("train", "speech", "clear", 3, phrase="digits", bank=bank)
    for event in one.events:
        assert event.offset - event.onset == pytest.approx((1600 + 10 * WORDS.index(event.name)) / RATE, abs=2e-3)
    assert one.samples(bank).shape == (SAMPLES,)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        recording("dev", "music", "clear", 0)  # type: ignore[arg-type]
