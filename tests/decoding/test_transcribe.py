"""One streamer for all pieces of a long sound."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from transformers import TextIteratorStreamer

import limelight
from limelight.errors import LimelightError, MediaError


@pytest.fixture(scope="module")
def adapter() -> limelight.Adapter:
    return limelight.load("demo-audio")


def noise(seconds: float) -> tuple[Any, int]:
    return (0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))).astype(np.float32), 16_000


def test_a_streamer_hears_all_pieces_and_ends_once(adapter: limelight.Adapter) -> None:
    given = {"sound": noise(5.0), "chunk_seconds": 2.0, "max_new_tokens": 3, "relevance": False, "min_new_tokens": 3}
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
    "bad", [{"sound": None}, {"strategy": "no such"}, {"num_beams": 2}, {"chunk_seconds": 0.0}], ids=str
)
def test_it_ends_after_errors(adapter: limelight.Adapter, bad: dict[str, Any]) -> None:
    streamer = TextIteratorStreamer(adapter.tokenizer, skip_prompt=True, timeout=60)
    with pytest.raises(LimelightError):
        limelight.transcribe(adapter, **{"sound": noise(1.0), "max_new_tokens": 2, **bad}, streamer=streamer)
    assert "".join(streamer) == ""


def test_sounds_in_every_shape(adapter: limelight.Adapter) -> None:
    samples, rate = noise(0.5)
    want = limelight.transcribe(adapter, sound=(samples, rate), max_new_tokens=3, relevance=False).text
    hub = {"array": samples, "sampling_rate": rate}
    shapes = [(rate, samples), [samples, rate], hub, {"audio": hub}, {"audio": (rate, samples)}, {"audio": [samples]}]
    for sound in shapes:
        assert limelight.transcribe(adapter, sound=sound, max_new_tokens=3, relevance=False).text == want
    for sound in ({"audio": [samples, samples]}, {"audio": samples, "image": "x.png"}, {"audio": []}):
        with pytest.raises(MediaError, match="expected one audio item"):
            limelight.transcribe(adapter, sound=sound, max_new_tokens=3)
