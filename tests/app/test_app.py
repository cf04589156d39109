"""The running app: through Gradio's own client, and in headless Chromium, where it fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import checkpoint, photo  # noqa: F401
from tests.cli.test_main import flat
from tests.report.test_page_browser import browser  # noqa: F401

NEEDS_GRADIO = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (pip install 'limelight[app]')"
)


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("app") / "log"
    command = [sys.executable, "-m", "limelight", "app", str(checkpoint), "--port", str(port)]
    with log.open("wb") as sink:
        app = subprocess.Popen(command, stdout=sink, stderr=sink, env={**os.environ, "HF_HUB_OFFLINE": "1"})
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
        yield url
    finally:
        app.terminate()
        app.wait(20)


@NEEDS_GRADIO
def test_an_answer_over_the_api(address: str, photo: Path) -> None:  # noqa: F811
    script = f"""
from gradio_client import Client, handle_file
client = Client({address!r}, verbose=False)
ask = [handle_file({str(photo)!r}), "is there a cup ?", "greedy", "", "relevance-contrastive", "alpha=8", 5, False, 1.0, 0]
job = client.submit(*ask, api_name="/ask")
job.result()
told = job.outputs()
print("updates", len(told))
print("page", "<iframe" in str(told[-1][1]), "sandbox" in str(told[-1][1]))
print("file", open(told[-1][2]["value"] if isinstance(told[-1][2], dict) else told[-1][2]).read(15))
ask[5] = "alfa=8"
print("trouble", client.predict(*ask, api_name="/ask")[0])
ask[0] = None
print("trouble", client.predict(*[*ask[:5], "", *ask[6:]], api_name="/ask")[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert int(lines[0].split()[1]) > 3  # it streamed
    assert lines[1] == "page True True"
    assert lines[2] == "file <!doctype html>"
    assert "no setting" in lines[3]
    assert "alfa" in lines[3]
    assert "nothing to look at" in lines[4]


@NEEDS_GRADIO
def test_in_a_browser(address: str, photo: Path, browser: Any) -> None:  # noqa: F811
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    outside: list[str] = []
    errors: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(address)
    page.get_by_label("Question").wait_for(timeout=60_000)
    page.set_input_files("input[type=file]", str(photo))
    page.get_by_label("Question").fill("is there a cup ?")
    page.get_by_role("button", name="Ask", exact=True).click()
    inner = page.frame_locator('iframe[title="Where the words come from"]')
    inner.locator("html[data-ready]").wait_for(state="attached", timeout=90_000)
    assert inner.locator(".column").count() == 2
    inner.locator(".w").first.hover()
    assert inner.locator(".facts .word b").first.inner_text() == inner.locator(".w").first.inner_text()
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download the page").or_(
            page.get_by_role("button", name="Download the page")
        ).click()
    assert Path(saved.value.path()).read_text(encoding="utf-8").startswith("<!doctype html>")
    context.close()
    assert (outside, errors) == ([], [])


def test_without_the_extra_it_says_what_to_install(checkpoint: Path) -> None:  # noqa: F811
    script = f"""
import sys
sys.modules["gradio"] = None
from limelight.cli.main import app
app(["app", {str(checkpoint)!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 2
    assert "limelight[app]" in flat(done.stderr)
