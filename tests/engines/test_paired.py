"""The client's pairs of requests."""

from __future__ import annotations

import base64
import io
import threading
import wave
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limelight.engines.paired import INSTRUCTION, chat, contrast_messages
from limelight.errors import SettingError


class Client:
    """An openai client that answers when both requests of a pair are there."""

    def __init__(self, together: int = 2) -> None:
        self.asked: list[dict[str, Any]] = []
        self.barrier = threading.Barrier(together)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **options: Any) -> Any:
        self.asked.append(options)
        self.barrier.wait(timeout=20)
        return options["extra_body"]["vllm_xargs"].get("limelight_role", "alone")


def image(colour: str = "red") -> dict[str, Any]:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()},
    }


TEXT = {"type": "text", "text": "What is it?"}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [image(), TEXT]}]


def test_a_pair_is_sent_concurrently_and_the_answer_returned() -> None:
    client = Client()
    assert chat(client, "model", MESSAGES, method="icd", settings={"alpha": 2.0}, max_tokens=5) == "answer"
    by_role = {o["extra_body"]["vllm_xargs"]["limelight_role"]: o for o in client.asked}
    pairs = {o["extra_body"]["vllm_xargs"]["limelight_pair"] for o in client.asked}
    assert len(pairs) == 1
    assert all(o["extra_body"]["vllm_xargs"]["limelight_alpha"] == 2.0 and o["max_tokens"] == 5 for o in client.asked)
    assert by_role["answer"]["messages"] == MESSAGES
    assert by_role["contrast"]["messages"][1]["content"][0] == {"type": "text", "text": INSTRUCTION}


def test_flb_is_one_request() -> None:
    client = Client(together=1)
    assert chat(client, "model", MESSAGES, method="flb") == "alone"
    assert client.asked[0]["extra_body"] == {"vllm_xargs": {"limelight": "flb"}}


def test_contrast_messages() -> None:
    assert contrast_messages(MESSAGES, "m3id")[1]["content"] == [TEXT]
    noisy = contrast_messages(MESSAGES, "vcd")
    assert MESSAGES[1]["content"][0] == image()  # the messages given are unchanged
    url = noisy[1]["content"][0]["image_url"]["url"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert pixels.std() > 40
    assert noisy == contrast_messages(MESSAGES, "vcd")  # seeded
    own = np.full(pixels.shape, (255, 0, 0))
    little = contrast_messages(MESSAGES, "vcd", noise_step=0)[1]["content"][0]["image_url"]["url"]
    close = np.asarray(Image.open(io.BytesIO(base64.b64decode(little.partition(",")[2]))))
    assert np.abs(close.astype(int) - own).mean() < 5


def test_silence_has_the_length_of_the_recording() -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        sound.writeframes(b"\x01\x02" * 800)
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(out.getvalue()).decode(), "format": "wav"}}
    made = contrast_messages([{"role": "user", "content": [part, TEXT]}], "aad")[0]["content"][0]
    with wave.open(io.BytesIO(base64.b64decode(made["input_audio"]["data"]))) as sound:
        assert sound.getnframes() == 800
        assert set(sound.readframes(800)) == {0}


def test_unsupported_requests() -> None:
    with pytest.raises(SettingError, match="unknown method"):
        chat(Client(), "model", MESSAGES, method="pai")
    with pytest.raises(SettingError, match="no setting"):
        chat(Client(), "model", MESSAGES, method="vcd", settings={"gamma": 1})
    with pytest.raises(SettingError, match="streamed"):
        chat(Client(), "model", MESSAGES, method="icd", stream=True)
    with pytest.raises(SettingError, match="nothing to contrast"):
        contrast_messages([{"role": "user", "content": "only words"}], "vcd")
    web = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]
    with pytest.raises(SettingError, match="data: addresses"):
        contrast_messages(web, "vcd")
