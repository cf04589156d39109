"""Key, Host header, and the OpenAPI document."""

from __future__ import annotations

import httpx
import openai
import pytest

from limelight.errors import SettingError
from limelight.server.guard import host_names, is_loopback
from limelight.server.limits import Limits
from tests.server.conftest import MODEL, Running, Serve


def test_the_key(serve: Serve) -> None:
    with serve(api_key="s3cret-ключ", host_names=host_names("127.0.0.1")) as running:
        assert running.post({"model": MODEL}).status_code == 401
        good = {"Authorization": "Bearer s3cret-ключ".encode()}
        for bad in ({}, {"Authorization": "Bearer s3cret"}, {"Authorization": b"Bearer \xff\xfe"}, {"Authorization": "Basic x"},
                    {"Authorization": "s3cret-ключ".encode()}):  # fmt: skip
            got = httpx.get(f"{running.url}/v1/models", headers=bad, trust_env=False, timeout=60)
            assert got.status_code == 401
            assert got.json()["error"]["code"] == "invalid_api_key"
        for path in ("/metrics", "/openapi.json", "/v1/none"):
            assert httpx.get(f"{running.url}{path}", trust_env=False, timeout=60).status_code == 401
        assert httpx.get(f"{running.url}/health", trust_env=False, timeout=60).status_code == 200
        assert httpx.get(f"{running.url}/v1/models", headers=good, trust_env=False, timeout=60).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            running.openai(api_key="wrong").models.list()
        for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            headers = {**good, "Host": name}
            assert (
                httpx.get(f"{running.url}/v1/models", headers=headers, trust_env=False, timeout=60).status_code == 421
            )
        headers = {**good, "Host": "localhost:99"}
        assert httpx.get(f"{running.url}/v1/models", headers=headers, trust_env=False, timeout=60).status_code == 200


def test_loopback_and_the_names_it_goes_by() -> None:
    assert all(is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "127.0.0.2"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "example.org", "10.0.0.1"))
    assert host_names("0.0.0.0") is None
    assert "localhost" in (host_names("::1") or ())


def test_the_openapi_document_describes_the_request(server: Running) -> None:
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False, timeout=60).json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    assert {"messages", "limelight", "stream"} <= set(schemas["ChatRequest"]["properties"])

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [r for v in node.values() for r in references(v)]
        return [r for v in node for r in references(v)] if isinstance(node, list) else []

    assert {r.rpartition("/")[2] for r in references(document)} <= set(schemas)
    assert "/v1/models" in document["paths"]


def test_bounds_must_bound() -> None:
    with pytest.raises(SettingError, match="queue"):
        Limits(queue=0)
    with pytest.raises(SettingError, match="timeout"):
        Limits(timeout=float("nan"))
