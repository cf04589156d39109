"""What clients really send: second turns, dumps of the official client's objects, evaluation harnesses, gateways."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import limelight
from limelight.server.schema import parse
from tests.server.conftest import MODEL, Running, ask, create, data_url, example

FORMS = {
    "model_dump": lambda message: message.model_dump(),
    "without null": lambda message: message.model_dump(exclude_none=True),
    "without unset": lambda message: message.model_dump(exclude_unset=True),
    "to_dict": lambda message: message.to_dict(),
    "to_dict with unset": lambda message: message.to_dict(exclude_unset=False),
    "JSON": lambda message: json.loads(message.model_dump_json()),
    "the object": lambda message: message,
}
QUESTION = {"role": "user", "content": "Is there a cup in the picture?"}


@pytest.mark.parametrize("form", FORMS)
def test_the_second_turn(client: openai.OpenAI, form: str) -> None:
    first = create(client)
    said = {"role": "assistant", "content": first.choices[0].message.content}
    want = client.chat.completions.create(model=MODEL, messages=[*ask(), said, QUESTION], max_tokens=4)  # type: ignore[list-item]
    back = FORMS[form](first.choices[0].message)
    got = client.chat.completions.create(model=MODEL, messages=[*ask(), back, QUESTION], max_tokens=4)
    assert got.choices[0].message.content == want.choices[0].message.content


def test_a_streamed_answer_goes_back(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ask(), max_tokens=16) as stream:  # type: ignore[arg-type]
        message = stream.get_final_completion().choices[0].message
    again = client.chat.completions.create(model=MODEL, messages=[*ask(), message.model_dump(), QUESTION], max_tokens=4)  # type: ignore[list-item]
    assert again.choices[0].message.content


NOTHING: dict[str, Any] = {
    "user": "me", "safety_identifier": "me", "prompt_cache_key": "k", "metadata": {"run": "1"}, "store": False,
    "service_tier": "auto", "modalities": ["text"], "response_format": {"type": "text"}, "tool_choice": "auto",
    "function_call": "none", "parallel_tool_calls": True, "presence_penalty": 0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "length_penalty": 1, "min_p": 0.0, "min_tokens": 0, "ignore_eos": False, "n": 1,
    "use_beam_search": False, "skip_special_tokens": True, "seed": 3, "logprobs": False, "top_logprobs": 0, "top_k": 5,
    "stop": ["", "never said"], "stream_options": {"include_usage": False, "include_obfuscation": False},
    "tools": [], "functions": [], "logit_bias": {}, "limelight": {"settings": None, "strategy": None, "grounding": None},
    "extra_body": {}, "web_search_options": None, "prediction": None, "audio": None, "reasoning_effort": None,
    "unheard_of": None, "nested": {"a": [None, {"b": ""}]}, "stream": False,
}  # fmt: skip


def test_what_changes_nothing_is_accepted(server: Running) -> None:
    body = {"model": MODEL, "messages": ask(), "max_tokens": 4, "max_completion_tokens": 4}
    want = server.post(body).json()
    got = server.post({**body, **NOTHING})
    assert got.status_code == 200, got.text
    assert (got.json()["choices"], got.json()["usage"]) == (want["choices"], want["usage"])
    for name in {**body, **NOTHING}:
        if name in ("model", "messages"):
            continue
        assert server.post({**body, name: None}).status_code == 200, name
    for name in ("stop", "tools", "user", "tool_choices", "metadata"):
        empty = "" if name == "user" else []
        assert server.post({**body, name: {} if name == "metadata" else empty}).status_code == 200, name


WITH_CONTENT: dict[str, Any] = {
    "store": True, "service_tier": "priority", "modalities": ["text", "audio"], "response_format": {"type": "json_object"},
    "tool_choice": "required", "presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 1.1, "min_p": 0.1,
    "min_tokens": 3, "ignore_eos": True, "use_beam_search": True, "skip_special_tokens": False,
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [{"name": "f"}], "logit_bias": {"5": 3},
    "reasoning_effort": "low", "audio": {"voice": "alloy"}, "unheard_of": 0, "prediction": {"type": "content"},
    "chat_template_kwargs": {"enable_thinking": False}, "metadata": {"k": "v" * 600}, "verbosity": "low",
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_CONTENT)
def test_what_would_change_something_is_named(server: Running, name: str) -> None:
    got = server.post({"model": MODEL, "messages": ask(), name: WITH_CONTENT[name]})
    assert got.status_code == 400
    assert got.json()["error"]["param"].startswith(name)


MESSAGES: dict[str, tuple[Any, str]] = {
    "tool calls": ({"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, "messages.1.tool_calls"),
    "a refusal": ({"role": "assistant", "content": "", "refusal": "no"}, "messages.1.refusal"),
    "reasoning": ({"role": "assistant", "content": "yes", "reasoning_content": "hm"}, "messages.1.reasoning_content"),
    "a tool": ({"role": "tool", "content": "x", "tool_call_id": "a"}, "messages.1"),
    "a function": ({"role": "function", "content": "x", "name": "a"}, "messages.1"),
    "no content": ({"role": "user", "content": None}, "messages.1.content"),
    "a picture of the assistant": ({"role": "assistant", "content": ask()[0]["content"]}, "messages.1.content"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_with_what_is_not_known_are_named(server: Running, kind: str) -> None:
    message, where = MESSAGES[kind]
    got = server.post({"model": MODEL, "messages": [*ask(), message, QUESTION]})
    assert got.status_code == 400
    assert got.json()["error"]["param"].startswith(where)


def test_empty_fields_of_messages_and_parts(server: Running) -> None:
    url = data_url(example())
    turns = [
        {"role": "developer", "content": "Answer.", "name": None},
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": None}], "name": ""},
        {"role": "user", "name": "me", "content": [
            {"type": "image_url", "image_url": {"url": url, "detail": None, "format": None}, "text": None},
            {"type": "text", "text": "Is there a hat in the picture?", "image_url": None, "annotations": []},
        ]},
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "tool_calls": [], "function_call": {}, "annotations": []},
        {"role": "assistant", "content": [{"type": "text", "text": "no", "logprobs": None}]},
        QUESTION,
    ]  # fmt: skip
    got = server.post({"model": MODEL, "messages": turns, "max_tokens": 4})
    assert got.status_code == 200, got.text


@pytest.mark.parametrize("detail", ["auto", "low", "high", None])
def test_detail_changes_nothing(server: Running, detail: str | None) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(example()), "detail": detail}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "Describe the picture."}]}]
    want = server.post({"model": MODEL, "messages": ask(), "max_tokens": 16}).json()["choices"]
    assert server.post({"model": MODEL, "messages": messages, "max_tokens": 16}).json()["choices"] == want


def test_a_picture_whose_address_is_no_object(server: Running) -> None:
    image = {"type": "image_url", "image_url": data_url(example())}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "Describe the picture."}]}]
    want = server.post({"model": MODEL, "messages": ask(), "max_tokens": 16}).json()["choices"]
    assert server.post({"model": MODEL, "messages": messages, "max_tokens": 16}).json()["choices"] == want


TYPES: list[tuple[str, Any]] = [
    ("temperature", True), ("temperature", "1"), ("top_p", True), ("top_p", "1"), ("stream", "yes"), ("stream", 1),
    ("stream", "true"), ("seed", True), ("seed", 1.5), ("seed", "1"), ("n", True), ("n", "1"), ("n", 1.0),
    ("max_tokens", True), ("max_tokens", "4"), ("max_tokens", 4.5), ("max_completion_tokens", True), ("logprobs", 1),
    ("logprobs", "true"), ("top_logprobs", True), ("top_k", True), ("top_k", "5"), ("stop", 5), ("stop", [5]), ("stop", True),
    ("user", 5), ("user", True), ("model", 5), ("store", 0), ("metadata", {"a": 1}), ("metadata", ["a"]),
    ("presence_penalty", False), ("frequency_penalty", "0"), ("ignore_eos", 0), ("skip_special_tokens", 1),
    ("stream_options", True), ("stream_options", {"include_usage": "yes"}), ("stream_options", {"include_usage": 1}),
    ("messages", {"role": "user"}), ("response_format", "text"), ("parallel_tool_calls", "true"), ("modalities", "text"),
    ("limelight", {"grounding": 1}), ("limelight", {"grounding": "true"}), ("limelight", {"page": "no"}),
    ("limelight", {"strategy": 1}), ("limelight", True), ("limelight", {"settings": [1]}),
    ("limelight", {"strategy": "lime", "settings": {"lr": "0.1"}}), ("limelight", {"strategy": "lime", "settings": {"lr": True}}),
    ("limelight", {"strategy": "lime", "settings": {"steps": True}}), ("limelight", {"strategy": "lime", "settings": {"steps": 2.5}}),
    ("limelight", {"strategy": "lime-cached", "settings": {"after": True}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), TYPES, ids=map(repr, TYPES))
def test_types_are_strict(server: Running, name: str, value: Any) -> None:
    got = server.post({"model": MODEL, "messages": ask(), "max_tokens": 4, "temperature": 1.0, name: value})
    assert got.status_code == 400, got.text
    assert got.json()["error"]["param"].startswith(name)


def test_integers_are_accepted_as_floats(server: Running) -> None:
    more = {"limelight": {"strategy": "relevance-contrastive", "settings": {"alpha": 2}}, "temperature": 1, "top_p": 1}
    assert server.post({"model": MODEL, "messages": ask(), "max_tokens": 2, "seed": 1, **more}).status_code == 200


def test_top_k_bounds_what_is_drawn(client: openai.OpenAI) -> None:
    greedy = create(client).choices[0].message.content
    drawn = create(client, temperature=2.0, seed=1, extra_body={"top_k": 1}).choices[0].message.content
    free = create(client, temperature=2.0, seed=1, extra_body={"top_k": 0}).choices[0].message.content
    assert drawn == greedy != free


def test_vlmevalkit(server: Running) -> None:
    """The payload of its OpenAIWrapper: ``max_tokens`` beyond what the miniature's context has room for."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(example())).convert("RGB").save(out, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": "Is there a hat?"},
    ]
    payload = {
        "model": MODEL, "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": content}],
        "n": 1, "temperature": 0, "max_tokens": 2048,
    }  # fmt: skip
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-none"}
    got = server.post(content=json.dumps(payload), headers=headers)
    assert got.status_code == 200, got.text
    assert got.json()["choices"][0]["message"]["content"].strip()


def test_lmms_eval(client: openai.OpenAI) -> None:
    """The payload of lmms-eval's ``openai`` model."""
    content = [
        {"type": "text", "text": "Is there a hat?"},
        {"type": "image_url", "image_url": {"url": data_url(example())}},
    ]
    payload: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}], "model": MODEL, "max_tokens": 1024, "temperature": 0,
        "top_p": 1.0, "n": 1, "presence_penalty": 0, "frequency_penalty": 0,
    }  # fmt: skip
    response = client.chat.completions.create(**payload)
    assert response.choices[0].message.content
    assert response.usage.completion_tokens > 0
    assert not getattr(response.usage, "completion_tokens_details", None)
    more = {"response_format": {"type": "text"}, "max_completion_tokens": 1024}
    rest = {k: v for k, v in payload.items() if k not in ("temperature", "max_tokens", "top_p")}
    assert client.chat.completions.create(**rest, **more).choices[0].message.content


def test_lmms_evals_own_messages(client: openai.OpenAI) -> None:
    protocol = pytest.importorskip("lmms_eval.protocol", reason="lmms-eval is not installed")
    from PIL import Image

    picture = Image.open(io.BytesIO(example())).convert("RGB")
    said = [
        {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "Is there a hat?"}]}
    ]
    messages = protocol.ChatMessages(messages=said).to_openai_messages()
    assert create(client, messages=messages, max_tokens=4, temperature=0).choices[0].message.content


def test_langchain_and_litellm(server: Running) -> None:
    chain = {"model": MODEL, "messages": ask(), "stream": True, "temperature": 0.0, "n": 1, "stream_options": {"include_usage": True},
             "parallel_tool_calls": None, "max_completion_tokens": 8}  # fmt: skip
    lite = {"model": MODEL, "messages": ask(), "temperature": 0.2, "top_p": 0.9, "user": "u", "seed": 1, "max_tokens": 8, "tools": None,
            "tool_choice": None, "metadata": {"user_api_key": "x"}, "stream": False, "extra_headers": None, "functions": []}  # fmt: skip
    for body in (chain, lite):
        got = server.post(body)
        assert got.status_code == 200, got.text


def test_sound_parts_are_parsed() -> None:
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.zeros(800, np.float32), 16000, format="WAV")
    part = {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(out.getvalue()).decode(), "format": "wav", "id": None},
    }
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "x", "audio": None}]}],
    }
    assert parse(json.dumps(body).encode()).messages[0].content[0].type == "input_audio"  # type: ignore[union-attr]


def test_max_tokens_is_cut_to_the_context(server: Running, client: openai.OpenAI) -> None:
    room = limelight.load(MODEL).model.config.get_text_config().max_position_embeddings
    got = create(client, max_tokens=4096, temperature=2.0, seed=5)
    assert got.usage.total_tokens <= room
    refused = server.post({"model": MODEL, "messages": ask(), "max_tokens": 4097})
    assert refused.json()["error"]["param"] == "max_tokens"


def test_no_path_is_exposed(server: Running) -> None:
    for path in ("/v1/models", "/metrics", "/health", "/openapi.json", "/v1/none"):
        text = httpx.get(f"{server.url}{path}", trust_env=False, timeout=60).text
        assert limelight.__path__[0] not in text
        assert "site-packages" not in text
