"""Report pages of answers: asked for, linked, fetched with the key, safe in a browser, and gone after a while."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import openai
import pytest
from fastapi.responses import StreamingResponse

from limelight.report.page import render_page
from limelight.server.pages import PageStore, packed, served
from limelight.server.problems import ApiError
from tests.browser import chromium, watched
from tests.report.examples import generation, prompt, tone
from tests.report.test_page import data_of
from tests.server.conftest import MODEL, Running, Serve, ask, create

PAGE = {"limelight": {"page": True}}


def fetched(url: str, **more: Any) -> httpx.Response:
    return httpx.get(url, trust_env=False, **{"timeout": 60, **more})


def test_an_answer_names_its_page(server: Running, client: openai.OpenAI) -> None:
    got = create(client, max_tokens=4, extra_body=PAGE)
    assert got.limelight["page_url"].startswith(f"{server.url}/pages/")
    page = fetched(got.limelight["page_url"])
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert got.choices[0].message.content.split()[-1] in page.text
    assert "Describe the picture." in page.text
    assert re.search(r'id="data"[^>]*>[^<]{1000,}</script>', page.text)  # words, shares and heat
    assert "limelight" not in create(client, max_tokens=1).limelight.get("page_url", "")


def test_a_stream_names_its_page_at_the_end(client: openai.OpenAI) -> None:
    chunks = list(create(client, max_tokens=3, stream=True, extra_body=PAGE))
    told = [(c.model_extra or {}).get("limelight", {}).get("page_url") for c in chunks]
    assert [bool(t) for t in told] == [False] * (len(chunks) - 1) + [True]
    assert fetched(told[-1]).status_code == 200


def test_several_answers_share_a_page(client: openai.OpenAI) -> None:
    body = {"limelight": {"page": True, "strategy": "relevance-contrastive", "grounding": True}}
    got = create(client, n=2, temperature=1.6, seed=1, max_tokens=4, extra_body=body)
    page = fetched(got.limelight["page_url"]).text
    for choice in got.choices:
        assert choice.message.content.split()[0] in page
    assert page.count("<section") >= 2


@pytest.mark.parametrize("strategy", ["vcd", "relevance-contrastive"])
def test_a_page_has_a_relevance_whatever_the_strategy(client: openai.OpenAI, strategy: str) -> None:
    body = {"limelight": {"page": True, "strategy": strategy, "grounding": True}}
    about = create(client, max_tokens=3, extra_body=body).limelight
    for token in (*about["tokens"], about):
        assert sum(token["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert sum(token["contributions"].values()) == pytest.approx(1, abs=1e-4)
        assert token["shares"] != token["contributions"]
    columns = data_of(fetched(about["page_url"]).text)["cases"][0]["columns"]
    assert all("h" in w and "sh" in w and "co" in w for c in columns for w in c["words"])


def test_a_browser_may_run_its_script_alone(client: openai.OpenAI) -> None:
    words = "</script><script>alert(1)</script><img src=x onerror=alert(2)> Is there a cup in the picture?"
    got = create(client, words, max_tokens=2, extra_body=PAGE)
    page = fetched(got.limelight["page_url"])
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    script_src = re.search(r"script-src ([^;]*);", policy)
    assert script_src
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", script_src[1])  # one script, and it is the page's own
    assert "unsafe" not in script_src[1]
    assert "frame-ancestors 'none'" in policy
    assert "sandbox allow-scripts" in policy
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "no-store" in page.headers["cache-control"]


def test_the_script_runs_under_the_policy(server: Running, client: openai.OpenAI) -> None:
    got = create(client, max_tokens=3, extra_body=PAGE)
    with chromium() as browser, watched(browser, server.url) as page:
        page.goto(got.limelight["page_url"])
        page.locator(".w").nth(1).hover()
        assert "on" in (page.locator(".w").nth(1).get_attribute("class") or "").split()
        assert page.locator("canvas").first.is_visible()


async def whole(answer: StreamingResponse) -> str:
    return b"".join([bytes(part) async for part in answer.body_iterator]).decode()  # type: ignore[arg-type]


def test_a_sound_plays_under_the_policy() -> None:
    of = prompt(("audio", 50, None, 0.04), media={"audio": [tone()]})
    answer = served(packed(render_page(generation(of, [" A", " dog"]))))
    home, body = "https://limelight.invalid/pages/x", asyncio.run(whole(answer))
    with chromium() as browser, watched(browser, home) as page:
        page.route("**/pages/x", lambda r: r.fulfill(headers=dict(answer.headers), body=body))
        page.goto(home)
        page.locator("html[data-ready]").wait_for(state="attached")
        page.locator(".stage").click(position={"x": 40, "y": 20})
        seconds, paused = page.locator("audio").evaluate("(a) => [a.currentTime, a.paused]")
        assert (seconds > 0, paused) == (True, False)


def test_pages_need_the_key(serve: Serve) -> None:
    with serve(api_key="k") as running:
        got = create(running.openai(api_key="k"), max_tokens=1, extra_body=PAGE)
        url = got.limelight["page_url"]
        assert fetched(url).status_code == 401
        assert fetched(url, headers={"Authorization": "Bearer k"}).status_code == 200


def test_a_page_of_words_alone(server: Running) -> None:
    words = [{"role": "user", "content": "Is there a cup in the picture?"}]
    done = server.post({"model": MODEL, "messages": words, "max_tokens": 2, **PAGE})
    assert done.status_code == 200, done.text
    page = fetched(done.json()["limelight"]["page_url"])
    assert page.status_code == 200
    assert "Is there a cup" in page.text


def test_what_has_no_page(server: Running) -> None:
    for name in ("x", "../openapi.json", "%2e%2e/metrics", "a" * 500):
        missing = fetched(f"{server.url}/pages/{name}")
        assert missing.status_code in (200, 404)
        assert "limelight_requests" not in missing.text
    assert fetched(f"{server.url}/pages/none").json()["error"]["code"] == "page_not_found"
    assert server.post({"model": MODEL, "messages": ask(), "max_tokens": 2, **PAGE}).status_code == 200


def test_the_shelf_is_bounded() -> None:
    async def go() -> None:
        now = 0.0
        store = PageStore(most=3, most_bytes=100, seconds=10, clock=lambda: now)
        names = [await store.put(bytes(10)) for _ in range(4)]
        assert len(set(names)) == 4
        assert all(len(n) >= 32 for n in names)
        assert [await store.get(n) is not None for n in names] == [False, True, True, True]
        assert await store.get(names[1])  # read last, so it stays longest
        await store.put(bytes(10))
        assert [await store.get(n) is not None for n in names] == [False, True, False, True]
        big = await store.put(bytes(95))
        assert list(store.kept) == [big]
        assert await store.get(await store.put(bytes(500))) is None
        assert await store.get(big)  # a page that can never be kept puts no other one out
        now = 5.0
        last = await store.put(bytes(1))
        now = 9.9
        assert await store.get(big)  # reading does not make it live longer
        now = 10.1
        assert await store.get(big) is None
        assert await store.get(last) == bytes(1)
        now = 15.1
        assert await store.get(last) is None
        assert not store.kept and store.kept.currsize == 0  # the memory is free as soon as somebody asks

    asyncio.run(go())


def test_a_page_without_a_script_gets_none() -> None:
    policy = served(packed("<p>x</p>")).headers["content-security-policy"]
    assert "script-src 'none'" in policy
    with pytest.raises(ApiError, match="does not exist"):
        served(None)
