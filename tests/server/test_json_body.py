"""JSON bodies are bounded before they become objects."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.server.json_body import is_empty, read_json
from limelight.server.limits import MAX_JSON_DEPTH, MAX_JSON_VALUES
from limelight.server.problems import ApiError
from limelight.server.schema import parse

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_what_json_writes_is_read(value: Any, spaced: bool) -> None:
    text = json.dumps(value, indent=2 if spaced else None)
    assert read_json(text.encode("utf-8", "surrogatepass")) == value
    assert read_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


def zeros(count: int) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":[' + b"0," * (count - 1) + b"0]}]}"


HOSTILE: dict[str, bytes] = {
    "zeros": zeros(1_000_000),
    "empty strings": b"[" + b'"",' * 500_000 + b'""]',
    "objects": b"[" + b"{}," * 500_000 + b"{}]",
    "keys": b"{" + b",".join(b'"%d":0' % k for k in range(200_000)) + b"}",
    "deep": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 300_000,
    "closing": b"]" * 1_000_000,
    "digits": b"[" + b"9" * 2_000_000 + b"]",
    "letters": b"t" * 2_000_000,
    "too large a number": b"[1e999999]",
    "too small a number": b"[-1e999999]",
    "NaN": b"[NaN]",
    "infinity": b"[-Infinity]",
    "escapes": b'["' + b"\\n" * 1_100_000 + b'"]',
    "a string without end": b'["' + b'\\"' * 900_000,
    "lone surrogate": b'["\\ud800"]',
    "raw control character": b'["\x01"]',
    "twice": b'{"a": {"stream": true, "stream": false}}',
    "twice with an escape": b'{"stream": true, "str\\u0065am": false}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "not UTF-8": b'["\xff"]',
    "nothing": b"",
    "trailing": b"{} {}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies_cost_little(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as caught:
            read_json(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert len(caught.value.message) < 300
    assert peak < 4_000_000 + 2 * len(body)


def test_a_field_that_is_given_twice_is_named() -> None:
    for name in ("twice", "twice with an escape"):
        with pytest.raises(ApiError) as caught:
            read_json(HOSTILE[name])
        assert caught.value.param == "stream"


def test_what_is_within_the_bounds_is_read() -> None:
    assert read_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH)
    assert len(read_json(b"[" + b"0," * (MAX_JSON_VALUES - 2) + b"0]")) == MAX_JSON_VALUES - 1
    picture = "data:image/png;base64," + "A/" * 3_000_000
    assert read_json(json.dumps({"url": picture}).replace("/", "\\/", 900_000).encode()) == {"url": picture}


@pytest.mark.parametrize("count", [300, MAX_JSON_VALUES - 100])
def test_validation_stops_at_the_first_error(count: int) -> None:
    """A union tries each of its branches on each value, and pydantic keeps every error."""
    tracemalloc.start()
    try:
        for body in (zeros(count), b'{"model":"m","messages":[' + b"0," * count + b"0]}"):
            with pytest.raises(ApiError, match="messages"):
                parse(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_empty_values() -> None:
    assert all(map(is_empty, (None, "", [], {}, [None], {"a": {"b": []}})))
    assert not any(map(is_empty, (0, False, " ", [0], {"a": {"b": False}})))
