"""One streamer for all pieces of a long sound."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import TextIteratorStreamer

import limelight
from limelight.decoding.transcribe import segment_threshold
from limelight.demo.sound_questions import transcriptions
from limelight.errors import LimelightError, MediaError, SettingError, UnsupportedError
from limelight.grounding.evidence import against_vocabulary, forward_relevance


@pytest.fixture(scope="module")
def adapter() -> limelight.Adapter:
    return limelight.load("demo-audio")


def noise(seconds: float) -> tuple[Any, int]:
    return (0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))).astype(np.float32), 16_000


def phrases(n: int = 4) -> tuple[Any, int]:
    """Spoken phrases of four seconds each, one after the other."""
    return np.concatenate([t.recording.samples() for t in transcriptions("dev", "usual/clear", n)]), 16_000


def test_a_streamer_receives_all_pieces_and_ends_once(adapter: limelight.Adapter) -> None:
    given = {"audio": noise(5.0), "chunk_seconds": 2.0, "max_new_tokens": 3, "relevance": False, "min_new_tokens": 3}
    want = limelight.transcribe(adapter, **given)
    assert len(want.segments) > 1
    streamer = TextIteratorStreamer(adapter.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = threading.Thread(target=limelight.transcribe, args=(adapter,), kwargs={**given, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join(60)
    ids = [t for s in want.segments for t in s.generation.token_ids]
    assert text == adapter.tokenizer.decode(ids, skip_special_tokens=True)
    assert streamer.text_queue.empty()


@pytest.mark.parametrize(
    "bad", [{"audio": None}, {"strategy": "no such"}, {"num_beams": 2}, {"chunk_seconds": 0.0}], ids=str
)
def test_it_ends_after_errors(adapter: limelight.Adapter, bad: dict[str, Any]) -> None:
    streamer = TextIteratorStreamer(adapter.tokenizer, skip_prompt=True, timeout=60)
    with pytest.raises(LimelightError):
        limelight.transcribe(adapter, **{"audio": noise(1.0), "max_new_tokens": 2, **bad}, streamer=streamer)
    assert "".join(streamer) == ""


def test_sounds_in_every_shape(adapter: limelight.Adapter) -> None:
    samples, rate = noise(0.5)
    want = limelight.transcribe(adapter, audio=(samples, rate), max_new_tokens=3, relevance=False).text
    hub = {"array": samples, "sampling_rate": rate}
    shapes = [(rate, samples), [samples, rate], hub, {"audio": hub}, {"audio": (rate, samples)}, {"audio": [samples]}]
    for audio in shapes:
        assert limelight.transcribe(adapter, audio=audio, max_new_tokens=3, relevance=False).text == want
    for audio in ({"audio": [samples, samples]}, {"audio": samples, "image": "x.png"}, {"audio": []}):
        with pytest.raises(MediaError, match="expected one audio item"):
            limelight.transcribe(adapter, audio=audio, max_new_tokens=3)


def test_every_word_is_measured_and_decoding_is_unchanged(adapter: limelight.Adapter) -> None:
    plain = limelight.transcribe(
        adapter, audio=phrases(2), chunk_seconds=4.0, max_new_tokens=6, relevance=False, meter=False
    )
    told = limelight.transcribe(adapter, audio=phrases(2), chunk_seconds=4.0, max_new_tokens=6, relevance=False)
    assert told.text
    assert [s.generation.token_ids for s in told.segments] == [s.generation.token_ids for s in plain.segments]
    assert all(s.grounding is None and not s.invented for s in plain.segments)
    for one in told.segments:
        known = [
            s.grounding
            for s in one.generation.steps
            if any(c.isalnum() for c in s.text) and s.token not in adapter.tokenizer.all_special_ids
        ]
        assert one.grounding == (pytest.approx(sum(known) / len(known)) if known else None)
        logits, phi = forward_relevance(adapter, one.generation.prompt.tensors, one.generation.token_ids)
        want = against_vocabulary(logits, phi, one.generation.token_ids, len(adapter.tokenizer))
        for name, scores in (("grounding", want["z"]), ("support", want["centred"])):
            assert [getattr(s, name) for s in one.generation.steps] == pytest.approx(scores, abs=1e-3)
    assert told.settings["strategy"] == "greedy"
    with_shares = limelight.transcribe(adapter, audio=noise(1.0), max_new_tokens=2)
    assert with_shares.segments[0].generation.shares()  # greedy still computes relevance by default


def test_what_the_audio_does_not_support_is_dropped(adapter: limelight.Adapter) -> None:
    given: dict[str, Any] = {"audio": phrases(), "chunk_seconds": 4.0, "max_new_tokens": 6, "relevance": False}
    every = limelight.transcribe(adapter, **given)
    scores = sorted(s.support for s in every.segments if s.support is not None)
    limit = (scores[0] + scores[1]) / 2
    seen: list[bool] = []
    told = limelight.transcribe(adapter, **given, drop_invented=limit, on_segment=lambda s: seen.append(s.invented))
    assert len(told.dropped) == seen.count(True) == 1
    assert len(told.segments) + 1 == len(every.segments) == len(seen)
    assert told.dropped[0].support == scores[0]
    assert told.threshold == limit
    assert told.text == " ".join(s.text for s in every.segments if s.support != scores[0] and s.text)
    assert limelight.transcribe(adapter, **given, drop_invented=1e9).text == ""
    assert limelight.transcribe(adapter, **given, drop_invented=-1e9).text == every.text
    assert not limelight.transcribe(adapter, **given, drop_invented=False).dropped


def test_a_streamer_gets_only_what_is_kept(adapter: limelight.Adapter) -> None:
    given: dict[str, Any] = {"audio": phrases(), "chunk_seconds": 4.0, "max_new_tokens": 6, "relevance": False}
    scores = sorted(s.support for s in limelight.transcribe(adapter, **given).segments if s.support is not None)
    given["drop_invented"] = (scores[0] + scores[1]) / 2
    streamer = TextIteratorStreamer(adapter.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    told = limelight.transcribe(adapter, **given, streamer=streamer)
    ids = [t for s in told.segments for t in s.generation.token_ids]
    assert told.dropped
    assert "".join(streamer) == adapter.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_model_without_a_meter_is_still_transcribed(
    adapter: limelight.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"audio": phrases(2), "chunk_seconds": 4.0, "max_new_tokens": 6, "relevance": False}
    want = limelight.transcribe(adapter, **given, meter=False)

    def refused(*_: Any) -> None:
        raise UnsupportedError("no forward mode", hint="none")

    monkeypatch.setattr("limelight.decoding.methods.meter.open_stream", refused)
    streamer = TextIteratorStreamer(adapter.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    told = limelight.transcribe(adapter, **given, streamer=streamer)
    assert told.text == want.text
    assert "".join(streamer) == adapter.tokenizer.decode(
        [t for s in want.segments for t in s.generation.token_ids], skip_special_tokens=True
    )
    assert [s.grounding for s in told.segments] == [None] * len(want.segments)
    for option in ({"meter": True}, {"drop_invented": 1.0}):
        with pytest.raises(UnsupportedError, match="no forward mode"):
            limelight.transcribe(adapter, **given, **option)


def test_thresholds(adapter: limelight.Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    own = adapter.calibration
    assert own is not None
    monkeypatch.setattr(adapter, "calibration", replace(own, segment_threshold=2.5))
    assert segment_threshold(adapter) == segment_threshold(adapter, True) == 2.5
    assert segment_threshold(adapter, 1) == 1.0
    monkeypatch.setattr(adapter, "calibration", replace(own, segment_threshold=2.5, composite="cp-lrp"))
    assert segment_threshold(adapter) is None  # other scores
    monkeypatch.setattr(adapter, "calibration", None)
    with pytest.raises(SettingError, match="no threshold is known"):
        limelight.transcribe(adapter, audio=noise(1.0), drop_invented=True)
    with pytest.raises(SettingError, match="finite"):
        limelight.transcribe(adapter, audio=noise(1.0), drop_invented=float("nan"))
