"""Headless Chromium for tests. What is missing skips the tests that need it, and no other of their file."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM", shutil.which("chromium") or shutil.which("chromium-browser") or "")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PATIENCE = 180_000  # ms; of a browser on a machine that does other things


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser. While it is open, nothing else in this thread can run an event loop."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    if not CHROMIUM:
        pytest.skip("no chromium on this machine (apt-get install chromium, or set CHROMIUM)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for a file; imported by those that use it."""
    with chromium() as started:
        yield started


def answered(page: Any, inner: Any) -> None:
    """Wait until a locator inside the app's report page is there, however long a busy machine needs; fail as soon as the
    page shows an error instead, or its server no longer answers."""
    alert = page.get_by_role("alert").first
    while not inner.count():
        assert not alert.count(), alert.inner_text()
        urllib.request.urlopen(page.url, timeout=PATIENCE / 1000).close()
        page.wait_for_timeout(250)


@contextmanager
def watched(browser: Any, home: str, *, quiet: bool = True) -> Iterator[Any]:
    """A page in which, by the end, nothing may have been thrown, requested from elsewhere than ``home``, or (``quiet``) logged."""
    troubles: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    if quiet:
        page.on("console", lambda m: troubles.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: troubles.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((home, "data:", "blob:")) else troubles.append(r.url))
    try:
        yield page
    finally:
        context.close()
    assert troubles == []
