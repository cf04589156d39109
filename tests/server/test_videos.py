"""Videos of strangers: bounded frames of declared containers, no playlist, and the official client's video parts."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import limelight
from limelight.errors import LimelightError, MediaError, MediaWarning
from limelight.media.decoder import decode
from limelight.media.video import read_video
from limelight.models.adapter import Adapter
from limelight.server.limits import Limits
from limelight.server.state import ServerConfig
from limelight.server.videos import CONTAINERS, container_of, video
from tests.models.films import FILMS, SHADES, film
from tests.server.conftest import MODEL, ask, data_url, png, served
from tests.zoo import ZOO

av = pytest.importorskip("av", reason="the extra `video` is not installed")
SMALL = Limits(frame_pixels=10_000, video_pixels=200_000, video_seconds=5, frames=4, body_bytes=400_000)


def encoded(
    kind: str = "mp4", codec: str = "libx264", frames: int = 8, rate: int = 4, size: tuple[int, int] = (48, 32)
) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for k in range(frames):
            grey = np.full((size[1], size[0], 3), 10 + 200 * k // max(frames, 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def decoded(data: bytes, kind: str = "video/mp4", limits: Limits = SMALL) -> Any:
    file = video(data, kind, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)  # cut short
        return decode(file.kind, file.data, file.options)


@pytest.mark.parametrize(
    ("kind", "container", "codec"),
    [("video/mp4", "mp4", "libx264"), ("video/mp4", "mp4", "mpeg4"), ("video/webm", "webm", "libvpx"),
     ("video/webm", "webm", "libvpx-vp9"), ("video/x-matroska", "matroska", "libx264"), ("video/quicktime", "mov", "mpeg4"),
     ("video/x-msvideo", "avi", "mjpeg")],
)  # fmt: skip
def test_containers_and_codecs(kind: str, container: str, codec: str) -> None:
    clip = decoded(encoded(container, codec), kind)
    assert len(clip) == 4
    assert {f.size for f in clip.frames} == {(48, 32)}
    assert {f.mode for f in clip.frames} == {"RGB"}
    shades = [f.getpixel((20, 10))[0] for f in clip.frames]
    assert shades == sorted(shades)
    assert clip.seconds == pytest.approx((0, 0.5, 1.25, 1.75), abs=0.02)


def test_frames_and_times_are_the_librarys(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    want, got = read_video(path, 8), decoded(path.read_bytes(), limits=replace(SMALL, frames=8))
    assert got.seconds == pytest.approx(want.seconds)
    assert len(got) == len(want) == len(SHADES)
    for a, b in zip(got.frames, want.frames, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert got.fps == want.fps
    assert got.duration == pytest.approx(want.duration)


PLAYLISTS = {
    "hls": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "nothing": b"",
    "words": b"this is no video" * 10,
    "picture": png(),
}


@pytest.mark.parametrize("data", PLAYLISTS.values(), ids=PLAYLISTS)
@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_is_no_video_is_never_opened(data: bytes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(MediaError):
        decoded(data, kind)


@pytest.mark.parametrize("start", [b"\x00\x00\x00\x18ftypmp42", b"\x1a\x45\xdf\xa3", b"RIFF"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_playlist_behind_a_videos_first_bytes_is_no_playlist(start: bytes, kind: str) -> None:
    with pytest.raises(MediaError):
        decoded(start + PLAYLISTS["hls"], kind)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (dict(size=(128, 96)), "per frame"),
        (dict(frames=24, rate=4), "limit of 5 s"),
        (dict(frames=200, rate=100, size=(64, 32)), "over all frames"),
        (dict(codec="flv", kind="avi"), "codec flv"),
    ],
    ids=["large", "long", "many", "codec"],
)
def test_what_is_refused(made: dict[str, Any], match: str) -> None:
    kind = "video/x-msvideo" if made.get("kind") == "avi" else "video/mp4"
    with pytest.raises(MediaError, match=match):
        decoded(encoded(**made), kind)


def test_types_that_are_not_read() -> None:
    for kind in ("video/x-flv", "video/mp2t", "application/vnd.apple.mpegurl", "video/"):
        with pytest.raises(MediaError, match="unsupported video type"):
            container_of(kind, encoded())
    with pytest.raises(MediaError, match="the data is not"):
        container_of("video/webm", encoded())


def test_a_video_cut_short_is_refused() -> None:
    whole = encoded("matroska", "mjpeg", frames=16)
    assert len(decoded(whole, "video/x-matroska")) == 4
    for part in (len(whole) // 2, len(whole) // 3, 300, 20):
        try:
            clip = decoded(whole[:part], "video/x-matroska")
        except MediaError:
            continue
        assert len(clip) == 4


def test_sound_alone_is_no_video() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video"):
        decoded(out.getvalue(), "video/x-matroska")


SEEDS = {"video/mp4": encoded(), "video/webm": encoded("webm", "libvpx"), "video/x-msvideo": encoded("avi", "mjpeg")}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_damaged_videos(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SEEDS[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(8, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))]
    try:
        clip = decoded(bytes(damaged), kind)
    except LimelightError:
        return
    assert 0 < len(clip) <= SMALL.frames
    assert all(f.width * f.height <= SMALL.frame_pixels for f in clip.frames)


def test_the_official_client_shows_a_video(tmp_path: Path, adapter: Adapter) -> None:
    make, modality, _ = FILMS["qwen2_5_vl"]
    seeing = Adapter(ZOO["qwen2_5_vl"].build(), make())
    path = film(tmp_path / "a.mp4")
    want = limelight.generate(
        seeing, messages="what is here ?", media={"video": str(path)}, meter=True, relevance=False, max_new_tokens=3
    )
    part = {"type": "video_url", "video_url": {"url": data_url(path.read_bytes(), "video/mp4")}}
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": "what is here ?"}]}]
    bad: Any = [
        {
            "role": "user",
            "content": [{**part, "video_url": {"url": "https://a.example/a.mp4"}}, messages[0]["content"][1]],
        }
    ]
    with served(seeing, ServerConfig(MODEL, limits=Limits(frames=8))) as running:
        client = running.openai()
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 3, "extra_body": {"limelight": {"grounding": True}}}
        got = client.chat.completions.create(messages=messages, **asked)
        assert got.choices[0].message.content == want.text
        assert got.usage.prompt_tokens == len(want.prompt.tokens)
        assert got.limelight["contributions"] == pytest.approx(want.contributions(), rel=1e-4)
        assert modality in got.limelight["contributions"]
        streamed = client.chat.completions.create(messages=messages, stream=True, **asked)
        assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == want.text
        with pytest.raises(openai.BadRequestError, match="videos are not fetched"):
            client.chat.completions.create(messages=bad, **asked)
    with served(adapter, ServerConfig(MODEL)) as running:
        with pytest.raises(openai.BadRequestError, match="takes image"):
            running.openai().chat.completions.create(messages=messages, model=MODEL, max_tokens=2)
        assert running.post({"model": MODEL, "messages": ask(), "max_tokens": 1}).status_code == 200
