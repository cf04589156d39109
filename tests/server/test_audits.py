"""POST /v1/grounding says of an answer what the library's own audit does."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

import limelight
from limelight.models.adapter import Adapter
from limelight.server import audits
from limelight.server.limits import Limits
from limelight.server.state import ServerConfig
from limelight.types import EARLIER_ANSWERS
from tests.server.conftest import MODEL, Running, alike, ask, example, served
from tests.tiny import llava

ANSWER = {"role": "assistant", "content": "A picture of a dog and a cup."}


def post(server: Running, messages: Any, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": messages, **more}
    return httpx.post(f"{server.url}/v1/grounding", json=body, timeout=120)


def direct(adapter: Adapter, turns: list[Any], answer: str) -> dict[str, Any]:
    picture = Image.open(io.BytesIO(example()))
    first = {
        "role": "user",
        "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Describe the picture."}],
    }
    (found,) = limelight.audit(adapter, [{"messages": [first, *turns], "answer": answer}])
    return found.to_json()


def test_an_audit_is_the_librarys(server: Running, adapter: Adapter) -> None:
    got = post(server, [*ask(), ANSWER])
    assert got.status_code == 200, got.text
    told = got.json()
    want = direct(adapter, [], ANSWER["content"])
    assert all(alike(told[k], v) for k, v in want.items())
    assert (told["object"], told["model"], told["answer"]) == ("grounding", MODEL, ANSWER["content"])
    assert told["usage"]["completion_tokens"] == len(want["tokens"])
    assert told["usage"]["total_tokens"] == sum(told["usage"][f"{k}_tokens"] for k in ("prompt", "completion"))
    assert any(w["flagged"] for w in told["words"])
    parts = post(
        server, [*ask(), {**ANSWER, "content": [{"type": "text", "text": ANSWER["content"]}]}], user="somebody"
    )
    assert alike(parts.json()["words"], told["words"])


def test_the_chats_own_answer_gets_the_scores_it_had(server: Running, client: Any) -> None:
    said = client.chat.completions.create(
        model=MODEL, messages=ask(), max_tokens=16, logprobs=True, extra_body={"limelight": {"grounding": True}}
    )
    audit = post(server, [*ask(), {"role": "assistant", "content": said.choices[0].message.content}]).json()
    own = said.limelight["tokens"]
    assert [t["text"] for t in audit["tokens"]] == [t["token"] for t in own[: len(audit["tokens"])]]
    for one, other, chosen in zip(audit["tokens"], own, said.choices[0].logprobs.content, strict=False):
        assert alike(one["contributions"], other["contributions"]) and one["flagged"] == other["flagged"]
        assert one["logprob"] == pytest.approx(chosen.logprob, abs=1e-3)


def test_earlier_answers(server: Running, adapter: Adapter) -> None:
    turns = [{"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Is there a dog?"}]
    told = post(server, [*ask(), *turns, {"role": "assistant", "content": "yes"}]).json()
    assert told["summary"]["contributions"][EARLIER_ANSWERS] > 0
    assert alike(told["tokens"], direct(adapter, turns, "yes")["tokens"])


def test_a_page(server: Running) -> None:
    told = post(server, [*ask(), ANSWER], limelight={"page": True}).json()
    page = httpx.get(told["page_url"], timeout=60)
    assert page.status_code == 200 and "Describe the picture." in page.text


def test_words_alone(server: Running) -> None:
    told = post(server, [{"role": "user", "content": "Is there a cup?"}, {"role": "assistant", "content": "no"}]).json()
    assert told["summary"]["grounding"] is None and told["flag"] == {} and "no image" in told["note"]
    assert told["tokens"][0]["logprob"] < 0


def test_concurrent_audits_share_one_batch(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = audits.audited

    def audited(adapter: Any, rows: Any, said: Any) -> Any:
        sizes.append(len(rows))
        if any(r.answer == "break" for r in rows):
            raise RuntimeError("broken")
        return own(adapter, rows, said)

    monkeypatch.setattr(audits, "audited", audited)
    said = ["A cup.", "A dog and a cat.", "break", "yes", "no", "A frog."]
    with served(adapter, ServerConfig(MODEL, batch=4)) as server, ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda a: post(server, [*ask(), {"role": "assistant", "content": a}]), said))
    assert [r.status_code for r in got] == [200, 200, 500, 200, 200, 200]  # who breaks breaks alone
    assert [r.json()["answer"] for r in got if r.status_code == 200] == [a for a in said if a != "break"]
    assert max(sizes) > 1
    for answer, reply in zip(said, got, strict=True):
        if reply.status_code == 200:
            assert alike(reply.json()["tokens"], direct(adapter, [], answer)["tokens"])


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"messages": ask()}, 400, "must be a non-empty answer"),
        ({"messages": [*ask(), {"role": "assistant", "content": " "}]}, 400, "must be a non-empty answer"),
        ({"messages": [ANSWER]}, 400, "no user message"),
        ({"messages": [*ask(), {"role": "assistant", "content": "an <image>"}]}, 400, "placeholders"),
        ({"model": "other"}, 404, "unknown model"),
        ({"stream": True}, 400, "unknown field"),
        ({"temperature": 1.0}, 400, "unknown field"),
        ({"limelight": {"strategy": "lime"}}, 400, "unknown field"),
        ({"messages": [*ask(url="data:image/png;base64,AAAA"), ANSWER]}, 400, "image"),
    ],
)
def test_what_is_refused(server: Running, change: dict[str, Any], status: int, says: str) -> None:
    body = {"model": MODEL, "messages": [*ask(), ANSWER], **change}
    got = httpx.post(f"{server.url}/v1/grounding", json=body, timeout=60)
    assert got.status_code == status and says in got.json()["error"]["message"]
    assert server.metric("limelight_worker_errors") == 0


def test_prompt_and_answer_have_a_limit_together(adapter: Adapter) -> None:
    with served(adapter, ServerConfig(MODEL, limits=Limits(prompt_tokens=70))) as server:
        assert post(server, [*ask(), {"role": "assistant", "content": "A cup."}]).status_code == 200
        got = post(server, [*ask(), {"role": "assistant", "content": "A cup. " * 8}])
        assert got.status_code == 400 and got.json()["error"]["code"] == "context_length_exceeded"


def test_a_model_without_a_template_takes_no_words_alone() -> None:
    with served(Adapter(llava()), ServerConfig(MODEL)) as server:
        got = post(server, [{"role": "user", "content": "Is there?"}, {"role": "assistant", "content": "no"}])
        assert got.status_code == 400 and "chat template" in got.json()["error"]["message"]
