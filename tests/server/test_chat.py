"""The official client and plain HTTP against a real server: answers, streams, grounding."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import limelight
from limelight.decoding.registry import strategies
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.server.state import ServerConfig
from tests.server.conftest import MODEL, Running, Serve, alike, ask, create, data_url, example, served
from tests.tiny import audio_processor, built


def direct(adapter: Adapter, text: str = "Describe the picture.", **more: Any) -> limelight.Generation:
    media = {"image": Image.open(io.BytesIO(example()))}
    return limelight.generate(adapter, messages=text, media=media, relevance=False, **{"max_new_tokens": 16, **more})


def test_an_answer_is_the_librarys(client: openai.OpenAI, adapter: Adapter) -> None:
    want = direct(adapter)
    got = create(client)
    assert got.choices[0].message.content == want.text
    assert got.choices[0].finish_reason == "stop"
    assert got.object == "chat.completion"
    assert got.usage.prompt_tokens == len(want.prompt.tokens)
    assert got.usage.completion_tokens == len(want.token_ids)
    assert got.limelight == {"strategy": "greedy", "settings": {}, "seed": None}


def test_a_stream_says_the_same(client: openai.OpenAI, adapter: Adapter) -> None:
    want = direct(adapter)
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == want.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(want.token_ids)
    assert all(c.usage is None for c in chunks[:-1])


@pytest.mark.parametrize("strategy", ["greedy", "lime-cached", "relevance-contrastive"])
def test_grounding_is_the_librarys(client: openai.OpenAI, adapter: Adapter, strategy: str) -> None:
    want = direct(adapter, strategy=strategy, meter=True, max_new_tokens=4)
    asked = {"limelight": {"strategy": strategy, "grounding": True}}
    got = create(client, max_tokens=4, logprobs=True, extra_body=asked)
    told = got.limelight["tokens"]
    assert [t["token"] for t in told] == [s.text for s in want.steps]
    assert [t["intervened"] for t in told] == [s.intervened for s in want.steps]
    assert [t["flagged"] for t in told] == [s.flagged for s in want.steps]
    for token, step in zip(told, want.steps, strict=True):
        assert token["contributions"] == pytest.approx(step.contributions, rel=1e-4)
        assert token["grounding"] == pytest.approx(step.grounding, rel=1e-4)
        assert token["grounding_by_modality"] == pytest.approx(dict(step.grounding_by_modality), rel=1e-4)
        assert token["p_supported"] == pytest.approx(step.p_supported, rel=1e-4)
    assert got.limelight["flag"] == want.flag
    assert not want.flag["default"]  # the miniature ships its calibration
    assert got.limelight["contributions"] == pytest.approx(want.contributions(), rel=1e-4)
    assert [x.logprob for x in got.choices[0].logprobs.content] == pytest.approx([s.logprob for s in want.steps])
    assert got.limelight["strategy"] == strategy
    streamed = [
        token
        for chunk in create(client, max_tokens=4, stream=True, extra_body=asked)
        for token in (chunk.model_extra or {}).get("limelight", {}).get("tokens", [])
    ]
    assert streamed == told


def test_settings_of_a_strategy_reach_it(client: openai.OpenAI, adapter: Adapter) -> None:
    settings = {"alpha": 6.0}
    want = direct(adapter, strategy=limelight.relevance_contrastive(**settings), max_new_tokens=6)
    body = {"limelight": {"strategy": "relevance-contrastive", "settings": settings}}
    got = create(client, max_tokens=6, extra_body=body)
    assert got.choices[0].message.content == want.text
    assert got.limelight["settings"]["alpha"] == 6.0


def test_a_strategy_applied_after_thinking(client: openai.OpenAI, adapter: Adapter) -> None:
    """No thinking model is at hand: the first word of the plain answer plays the marker."""
    marker = direct(adapter, max_new_tokens=1).steps[0].text
    strategy = limelight.strategy("lime-cached", lr=3e-2, after=marker)
    want = direct(adapter, strategy=strategy, max_new_tokens=4)
    body = {"limelight": {"strategy": "lime-cached", "settings": {"lr": 3e-2, "after": marker}, "grounding": True}}
    got = create(client, max_tokens=4, extra_body=body)
    assert got.choices[0].message.content == want.text
    assert got.limelight["settings"]["after"] == marker
    assert [t["intervened"] for t in got.limelight["tokens"]] == [False, *[True] * (len(want.steps) - 1)]
    for wrong in ("", [1], -1):
        body = {"limelight": {"strategy": "lime-cached", "settings": {"after": wrong}}}
        with pytest.raises(openai.BadRequestError, match="after"):
            create(client, max_tokens=2, extra_body=body)


def test_sampling_repeats_with_its_seed(client: openai.OpenAI, adapter: Adapter) -> None:
    want = direct(adapter, do_sample=True, temperature=1.7, top_p=0.9, top_k=0, seed=5)
    got = [create(client, temperature=1.7, top_p=0.9, seed=5) for _ in range(2)]
    assert {g.choices[0].message.content for g in got} == {want.text}
    drawn = create(client, temperature=1.7)
    again = create(client, temperature=1.7, seed=drawn.limelight["seed"])
    assert again.choices[0].message.content == drawn.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_cut_off(client: openai.OpenAI, adapter: Adapter, stream: bool) -> None:
    whole = direct(adapter).text
    stop = whole[4:9]
    got = create(client, stop=[stop, "never"], stream=stream)
    text = "".join(c.choices[0].delta.content or "" for c in got) if stream else got.choices[0].message.content
    assert text == whole[: whole.index(stop)].strip()


def test_logprobs_with_rivals_and_length(client: openai.OpenAI, adapter: Adapter) -> None:
    want = direct(adapter, max_new_tokens=3)
    got = create(client, max_tokens=3, logprobs=True, top_logprobs=3).choices[0]
    assert got.finish_reason == "length"
    for told, step in zip(got.logprobs.content, want.steps, strict=True):
        assert told.token == step.text
        assert bytes(told.bytes).decode() == step.text
        assert told.logprob == pytest.approx(step.logprob)
        assert len(told.top_logprobs) == 3
        assert told.top_logprobs[0].logprob == pytest.approx(step.logprob)  # greedy takes the likeliest
        assert told.top_logprobs[0].logprob >= told.top_logprobs[1].logprob


def test_words_alone_are_answered_plainly(client: openai.OpenAI) -> None:
    words = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Is there a cup in the picture?"}]
    got = client.chat.completions.create(model=MODEL, messages=words, max_tokens=8, logprobs=True)
    assert got.choices[0].message.content
    assert "plain decoding" in got.limelight["note"]
    assert len(got.choices[0].logprobs.content) >= 1
    drawn = [
        client.chat.completions.create(model=MODEL, messages=words, max_tokens=8, temperature=2, seed=3)
        for _ in range(2)
    ]
    assert drawn[0].choices[0].message.content == drawn[1].choices[0].message.content
    # a chat whose client always asks for more goes on: the model as it is, measured
    own = {"limelight": {"strategy": "lime", "grounding": True}}
    measured = client.chat.completions.create(model=MODEL, messages=words, max_tokens=8, extra_body=own)
    assert measured.choices[0].message.content == got.choices[0].message.content
    assert measured.limelight["strategy"] == "greedy"
    assert "plain decoding" in measured.limelight["note"]
    assert [t["contributions"] for t in measured.limelight["tokens"]] == [{"text": 1.0}] * len(
        measured.limelight["tokens"]
    )
    assert measured.limelight["tokens"]


def test_several_turns(client: openai.OpenAI) -> None:
    turns = [*ask("Is there a cup in the picture?"), {"role": "assistant", "content": "yes"},
             {"role": "user", "content": [{"type": "text", "text": "Is there a hat in the picture?"}]}]  # fmt: skip
    got = client.chat.completions.create(model=MODEL, messages=turns, max_completion_tokens=4)
    assert got.choices[0].message.content


def test_models_health_metrics_and_unknown_paths(server: Running, client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "limelight"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        assert http.get("/health").json() == {"status": "ok", "waiting": 0}
        before = server.metric("limelight_tokens_total")
        create(client, max_tokens=2)
        assert server.metric("limelight_tokens_total") > before
        assert server.metric('limelight_requests_total{route="/v1/chat/completions",status="200"}') >= 1
        for answer in (http.get("/v1/none"), http.delete("/v1/models"), http.get("/docs")):
            assert answer.status_code in (404, 405)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        http.get("/v1/none-of-these")
        assert "none-of-these" not in http.get("/metrics").text


def test_many_clients_get_the_answers_of_one(server: Running) -> None:
    questions = [f"{a}Is there a {b} in the picture?" for a in ("", "There is no hat. ") for b in ("hat", "cup", "pig")]
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.5, "seed": 11},
        {"limelight": {"strategy": "relevance-contrastive", "grounding": True}},
    ]
    bodies = [{"model": MODEL, "messages": ask(q), "max_tokens": 6, **k} for q in questions for k in kinds]

    def told(body: dict[str, Any]) -> Any:
        got = server.post(body).json()
        return got["choices"][0]["message"], got["usage"], got["limelight"]

    alone = [told(b) for b in bodies]
    assert len({json.dumps(a) for a in alone}) > 6
    with ThreadPoolExecutor(9) as pool:
        assert alike(list(pool.map(told, bodies)), alone)


def test_pictures_of_every_kind(server: Running) -> None:
    picture = Image.open(io.BytesIO(example())).convert("RGB")
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        out = io.BytesIO()
        picture.save(out, kind)
        url = data_url(out.getvalue(), f"image/{kind.lower()}")
        got = server.post({"model": MODEL, "messages": ask(url=url), "max_tokens": 2})
        assert got.status_code == 200, (kind, got.text)


def test_audio_reaches_the_model() -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install 'limelight[audio]')")
    wave = np.sin(np.arange(8000) * 0.1).astype(np.float32)
    out = io.BytesIO()
    soundfile.write(out, wave, 16000, format="WAV", subtype="FLOAT")
    part = {"data": base64.b64encode(out.getvalue()).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": part}, {"type": "text", "text": "what is the sound ?"}]
    tiny = Adapter(built("qwen2_audio").model, audio_processor())
    want = limelight.generate(
        tiny,
        messages="what is the sound ?",
        media={"audio": (wave, 16000)},
        meter=True,
        relevance=False,
        max_new_tokens=3,
    )
    with served(tiny, ServerConfig(MODEL)) as running:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 3}
        got = running.post({**body, "limelight": {"grounding": True}}).json()
        assert got["choices"][0]["message"]["content"] == want.text
        assert got["limelight"]["contributions"] == pytest.approx(want.contributions(), rel=1e-4)
        assert "audio" in got["limelight"]["contributions"]
        refused = running.post({"model": MODEL, "messages": ask("what is it"), "max_tokens": 3})
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_media"


def test_every_strategy_answers_or_is_refused_with_a_reason(server: Running) -> None:
    for name in strategies():
        more = {"limelight": {"strategy": name, "grounding": True}}
        got = server.post({"model": MODEL, "messages": ask(), "max_tokens": 2, **more})
        if name == "aad":  # for sound alone
            assert got.status_code == 400
            assert "sound" in got.json()["error"]["message"] or "audio" in got.json()["error"]["message"]
        else:
            assert got.status_code == 200, (name, got.text)
            assert all(t["contributions"] and t["shares"] == {} for t in got.json()["limelight"]["tokens"])


def test_a_second_question_about_an_image_reuses_its_prefill(serve: Serve, adapter: Adapter) -> None:
    with serve(strategy=limelight.relevance_contrastive(), prefix_cache=2) as running, running.openai() as asking:
        known = adapter.prefix_cache
        try:
            first = create(asking, "Is there a cup in the picture?", max_tokens=4)
            again = create(asking, "Is there a cup in the picture?", max_tokens=4)
            create(asking, "Is there a dog in the picture?", max_tokens=4)
            assert (known.hits, known.misses) == (2, 1)
            assert again.choices[0].message.content == first.choices[0].message.content
        finally:
            adapter.prefix_cache = None
    with pytest.raises(SettingError, match="prefix_cache"):
        ServerConfig("m", prefix_cache=-1)
