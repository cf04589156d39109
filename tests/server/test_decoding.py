"""Hostile media against a real server: each is refused, nobody else waits for it, and it leaves no memory behind."""

from __future__ import annotations

import gc
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import limelight
from limelight.errors import MediaError
from limelight.media import worker
from limelight.models.adapter import Adapter
from limelight.server.limits import Limits
from limelight.server.state import ServerConfig
from tests.media import hostile
from tests.server.conftest import MODEL, Running, ask, data_url, example, served, until


@pytest.fixture(scope="module")
def server(adapter: Adapter) -> Iterator[Running]:
    with served(adapter, ServerConfig(MODEL, limits=Limits(timeout=200.0))) as running:
        yield running


@pytest.fixture(scope="module")
def scans() -> str:
    return data_url(hostile.progressive_jpeg(), "image/jpeg")


def body(url: str | None = None, text: str = "Describe the picture.") -> dict[str, Any]:
    return {"model": MODEL, "messages": ask(text, url), "max_tokens": 2}


def busy() -> int:
    return len(worker.default_pool()._running)


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_valid_request_does_not_wait_for_hostile_ones(server: Running, scans: str) -> None:
    """More of them than there are decoders, all from one address."""
    assert server.post(body()).status_code == 200
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(server.post(body(scans)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: busy() >= 2)
    asked = 0
    while not answers:  # until the first hostile one has been ended
        assert server.post(body()).status_code == 200
        asked += 1
    assert asked >= 1
    for thread in threads:
        thread.join(200)
    assert [a.status_code for a in answers] == [400] * 6
    assert "limit of" in answers[0].json()["error"]["message"]
    assert answers[0].json()["error"]["code"] == "invalid_media"


def test_five_hostile_pictures_in_a_row_leave_nothing(server: Running) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not tell a process's memory (no /proc)")
    urls = [
        data_url(made)
        for made in (
            hostile.exif_png(), hostile.png_with_chunk(b"zTXt"), hostile.png_that_claims(3_900),
            hostile.png_that_claims(60_000), hostile.exif_png(50),
        )
    ]  # fmt: skip
    assert server.post(body()).status_code == 200
    before = most = rss()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, rss())

    watcher = threading.Thread(target=watch)
    watcher.start()
    codes = [server.post(body(url)).status_code for url in urls]
    done.set()
    watcher.join()
    assert set(codes) <= {200, 400} and codes[0] == 400
    assert most - before < 200_000_000  # the requests themselves are made in this process too
    assert server.post(body()).status_code == 200


def test_refused_media_do_not_pile_up(server: Running) -> None:
    """None waits for the collector of cycles, which counts objects and not megabytes."""
    url = data_url(b"no picture")
    assert server.post(body(url)).status_code == 400
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert server.post(body(url)).status_code == 400
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [o for o in gc.garbage if isinstance(o, MediaError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_film_that_claims_millions_of_samples(server: Running) -> None:
    pytest.importorskip("av", reason="the extra `video` is not installed")
    part = {"type": "video_url", "video_url": {"url": data_url(hostile.many_samples_mp4(), "video/mp4")}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is here?"}]}]
    got = server.post({"model": MODEL, "messages": messages, "max_tokens": 2})
    assert got.status_code == 400
    assert got.json()["error"]["code"] == "invalid_media"
    assert got.json()["error"]["param"] == "messages.0.content"


def test_a_client_that_leaves_ends_the_decoding(server: Running, scans: str) -> None:
    until(lambda: not busy())
    link = server.send(body(scans))
    until(busy)
    (pid,) = {p.popen.pid for p in worker.default_pool()._running.values()}
    link.close()
    until(lambda: pid not in {p.popen.pid for p in list(worker.default_pool()._processes)})
    until(lambda: not busy())
    assert server.post(body()).status_code == 200


def test_time_that_is_up_ends_the_decoding(adapter: Adapter, scans: str) -> None:
    with served(adapter, ServerConfig(MODEL)) as running:
        running.give(1.0)
        got = running.post(body(scans))
        assert got.status_code in (400, 504)  # 400: the machine was quicker than its processor limit
        until(lambda: not busy())


def test_room_in_memory_is_given_back(adapter: Adapter) -> None:
    """Requests whose pictures fit only one at a time are all answered, and hold nothing afterwards."""
    limits = Limits(pixels=1_000_000, decoded_bytes=4_100_000, timeout=200.0)
    with served(adapter, ServerConfig(MODEL, limits=limits)) as running:
        codes: list[int] = []
        threads = [threading.Thread(target=lambda: codes.append(running.post(body()).status_code)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert codes == [200] * 6
        assert running.post(body(data_url(b"no picture"))).status_code == 400
        until(lambda: running.chat.state.media.budget.used == 0)


def test_transparent_and_deep_pictures_are_what_people_see(server: Running) -> None:
    """The same answer as to the 8-bit picture on white."""
    plain = Image.open(io.BytesIO(example())).convert("RGB")
    opaque = np.asarray(plain)
    hidden = np.random.default_rng(0).integers(0, 256, opaque.shape, dtype=np.uint8)
    white = (opaque == 255).all(-1)
    clear = np.dstack([np.where(white[..., None], hidden, opaque), np.where(white, 0, 255)]).astype(np.uint8)
    answers = []
    for image in (plain, Image.fromarray(clear)):
        out = io.BytesIO()
        image.save(out, "PNG")
        got = server.post({**body(data_url(out.getvalue())), "max_tokens": 24, "logprobs": True})
        answers.append(got.json()["choices"][0])
    assert answers[0]["message"] == answers[1]["message"]
    first, second = ([t["logprob"] for t in a["logprobs"]["content"]] for a in answers)
    assert first == pytest.approx(second, abs=1e-4)


def test_warnings_about_media_are_reported(server: Running) -> None:
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    got = server.post(body(data_url(out.getvalue(), "image/gif"))).json()
    assert "only the first" in got["limelight"]["warnings"][0]
    assert "warnings" not in server.post(body()).json()["limelight"]


def test_truncated_audio_is_reported() -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(16000) * 0.1) / 2, 16000, format="WAV")
    with served(limelight.load("demo-audio"), ServerConfig("demo-audio")) as running:
        short, whole = (
            running.post_to(
                "/v1/audio/transcriptions", files={"file": ("a.wav", data)}, data={"model": "demo-audio"}
            ).json()
            for data in (out.getvalue()[:20_000], out.getvalue())
        )
    assert "truncated" in short["limelight"]["warnings"][0]
    assert "warnings" not in whole["limelight"]


def test_decoding_is_not_the_models_work(server: Running, scans: str) -> None:
    """The model's thread has nothing to do while a hostile picture is decoded."""
    link = server.send(body(scans))
    until(busy)
    seen = 0
    end = time.monotonic() + 0.5
    while busy() and time.monotonic() < end:
        assert not server.chat.worker.current
        seen += 1
    assert seen
    link.close()
    until(lambda: not busy())
