"""The running app: through Gradio's own client, and in headless Chromium, where it fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import limelight
from tests.browser import answered, browser, watched  # noqa: F401
from tests.cli.conftest import Run, checkpoint, photo, run, watcher  # noqa: F401
from tests.cli.test_main import flat
from tests.models.films import film
from tests.report.test_page import data_of
from tests.running import ended, free_port

RECORDING = Path(limelight.__file__).parent / "demo" / "audio" / "examples" / "C-wrong-003.flac"

NEEDS_GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (pip install 'limelight[app]')"
)


@contextmanager
def running(model: str | Path, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """``limelight app`` as a process of its own; its address."""
    port = free_port()
    command = [sys.executable, "-m", "limelight", "app", str(model), "--port", str(port)]
    with log.open("wb") as sink:
        app = subprocess.Popen(
            command, stdout=sink, stderr=sink, env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if app.poll() is not None:
                pytest.fail(log.read_text())
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail(f"it did not answer: {log.read_text()}")
        yield url
    finally:
        ended(app)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app puts its temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(watcher: Path, temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    with running(watcher, tmp_path_factory.mktemp("app") / "log", {"TMPDIR": str(temporary)}) as url:
        yield url
    assert list(temporary.glob("limelight*")) == list(temporary.glob("gradio*")) == []  # nothing stays after SIGTERM


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running("demo-audio", tmp_path_factory.mktemp("app") / "log") as url:
        yield url


def told(address: str, *asks: list[str]) -> list[list[Any]]:
    """What Gradio's own client is told of each question (Python source): all outputs, update by update."""
    script = f"""
import json
from gradio_client import Client, handle_file
client = Client({address!r}, verbose=False)
for ask in [{", ".join("[" + ", ".join(ask) + "]" for ask in asks)}]:
    job = client.submit(*ask, api_name="/ask")
    job.result(timeout=200)
    print(json.dumps(job.outputs()))
"""
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def asking(*media: Path | None, words: str = "what is here ?", settings: str = "alpha=8") -> list[str]:
    files = [f"handle_file({str(m)!r})" if m else "None" for m in media]
    return [*files, repr(words), "'greedy'", "''", "'relevance-contrastive'", repr(settings), "5", "False", "1.0", "0"]


def page_of(updates: list[Any]) -> str:
    """The page that the last update offers for download."""
    given = updates[-1][2]
    return Path(given["value"] if isinstance(given, dict) else given).read_text(encoding="utf-8")


@NEEDS_GRADIO
def test_answers_over_the_api(address: str, photo: Path, tmp_path: Path, temporary: Path) -> None:  # noqa: F811
    clip, none = film(tmp_path / "a.mp4"), ""
    answer, wrong, bare, watched_, both, broken = told(
        address,
        asking(photo, None),
        asking(photo, None, settings="alfa=8"),
        asking(None, None, settings=none),
        asking(None, clip, settings=none),
        asking(photo, clip, settings=none),
        asking(None, photo, settings=none),
    )
    assert len(answer) > 3  # it streamed
    assert "<iframe" in answer[-1][1]
    assert 'sandbox="allow-scripts"' in answer[-1][1]
    assert page_of(answer).startswith("<!doctype html")
    assert "no setting" in wrong[-1][0]
    assert "alfa" in wrong[-1][0]
    assert "has no media" in bare[-1][0]

    assert len(watched_) > 3
    shown = data_of(page_of(watched_))["cases"][0]
    assert [v["kind"] for v in shown["views"]] == ["video"]
    assert len(shown["media"]["videos"][0]) == 8
    assert all(w["sh"]["video"] > 0 for column in shown["columns"] for w in column["words"])
    shown = data_of(page_of(both))["cases"][0]
    assert [v["kind"] for v in shown["views"]] == ["image", "video"]
    assert 'role="alert"' in broken[-1][0]  # a picture handed in as a film

    (own,) = temporary.glob("limelight-app-*")
    assert list(own.rglob("*.html"))  # Gradio's copy, for the download
    assert not list(own.glob("tmp*"))


@NEEDS_GRADIO
def test_a_sound_over_the_api(listening: str) -> None:
    (answer,) = told(listening, asking(RECORDING, words="Describe the sounds in order.", settings=""))
    shown = data_of(page_of(answer))["cases"][0]
    assert [v["kind"] for v in shown["views"]] == ["audio"]
    assert shown["media"]["sounds"][0]["seconds"] == 4.0
    assert shown["media"]["sounds"][0]["src"].startswith("data:audio/")
    assert "frog" in [w["t"] for w in shown["columns"][0]["words"]]


@NEEDS_GRADIO
def test_a_sound_in_a_browser(listening: str, browser: Any) -> None:  # noqa: F811
    with watched(browser, listening, quiet=False) as page:
        page.goto(listening)
        page.get_by_label("Question").wait_for()
        page.get_by_text("Is there a sound of a dog in the audio?").first.click()  # one of the miniature's questions
        page.get_by_label("Clear").wait_for()  # its sound has come
        assert page.get_by_label("Question").input_value().endswith("Is there a sound of a dog in the audio?")
        assert page.get_by_label("Share").count() == 0
        page.get_by_role("button", name="Ask", exact=True).click()
        inner = page.frame_locator('iframe[title="Where the words come from"]')
        answered(page, inner.locator('[data-column="1"]'))
        inner.locator("html[data-ready]").wait_for(state="attached")
        inner.locator(".stage").first.click(position={"x": 60, "y": 20})
        seconds, paused = inner.locator("audio").first.evaluate("(a) => [a.currentTime, a.paused]")
        assert (seconds > 0, paused) == (True, False)  # the frame may play what the page holds


@NEEDS_GRADIO
def test_in_a_browser(address: str, photo: Path, browser: Any) -> None:  # noqa: F811
    with watched(browser, address, quiet=False) as page:
        page.goto(address)
        page.get_by_label("Question").wait_for()
        page.set_input_files("input[type=file]", str(photo))
        page.get_by_label("Remove Image").wait_for()  # it has been uploaded
        assert page.get_by_label("Share").count() == 0
        page.get_by_label("Question").fill("what is here ?")
        page.get_by_role("button", name="Ask", exact=True).click()
        inner = page.frame_locator('iframe[title="Where the words come from"]')
        answered(page, inner.locator('[data-column="1"]'))  # the page of both answers
        inner.locator("html[data-ready]").wait_for(state="attached")
        inner.locator(".w").first.click()
        assert inner.locator(".facts .word b").first.inner_text() == inner.locator(".w").first.inner_text()
        with page.expect_download() as saved:
            page.get_by_role("link", name="Download the page").or_(
                page.get_by_role("button", name="Download the page")
            ).click()
        assert Path(saved.value.path()).read_text(encoding="utf-8").startswith("<!doctype html>")


@NEEDS_GRADIO
def test_the_page_of_both_answers_is_not_written_into_the_loading_page_of_the_first() -> None:
    from limelight.app.blocks import framed

    first, second, third = (framed(f"page {turn}", turn) for turn in range(3))
    assert first.startswith("<div><iframe") and first.endswith("</div>")
    assert second.startswith("<section><iframe") and second.endswith("</section>")
    assert third.startswith("<div>")


@NEEDS_GRADIO
def test_hosts_and_origins(address: str, photo: Path) -> None:  # noqa: F811
    """Pages that rebind their name to this machine read nothing."""
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
        place = address.removeprefix("http://")
        for name in ("evil.example", "[::1]evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example"):
            for path in ("/", "/config", "/gradio_api/info"):
                got = http.get(path, headers={"Host": name})
                assert (got.status_code, got.json()["error"]["code"]) == (421, "wrong_host")
        assert http.get("/config", headers={"Host": place}).status_code == 200
        assert http.get("/config", headers={"Host": place.replace("127.0.0.1", "LOCALHOST.")}).status_code == 200
        upload = {"files": ("a.png", photo.read_bytes())}
        foreign = http.post("/gradio_api/upload", files=upload, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        assert http.post("/gradio_api/upload", files=upload, headers={"Origin": address}).status_code == 200


def test_a_missing_extra_is_named(
    checkpoint: Path,  # noqa: F811
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.devnull)  # the command sets it for the rest of its process
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "limelight.app.blocks", raising=False)
    told = run("app", checkpoint)
    assert told.exit_code == 2
    assert "limelight[app]" in flat(told.stderr)
