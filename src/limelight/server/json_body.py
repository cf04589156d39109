"""Parsing of untrusted JSON bodies, with limits checked before any object is created.

A small body can contain a million values, each of which becomes an object and possibly an error. So depth, values and the
length of numbers are first counted on the bytes, which needs no memory; strings (mostly images) are skipped.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic_core import from_json

from limelight.server.limits import MAX_ESCAPES, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_NUMBER_CHARACTERS
from limelight.server.problems import ApiError, invalid

_WINDOW = 65_536  # bytes scanned at a time, so that other threads can run in between
_BRACKETS = re.compile(rb"[\[\]{}]")
_LONG = re.compile(rb"[^\s\[\]{}:,]{%d}" % (MAX_NUMBER_CHARACTERS + 1))


def read_json(body: bytes | bytearray) -> Any:
    """Parse a JSON body.

    Raises:
        ApiError: 400: not valid JSON, nested too deeply, too many values, a number that is too long or too large for a
            float, a duplicate field.
    """
    fields = _bounded(body)
    try:
        value = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from None
    if _fields(value) != fields:
        raise invalid("duplicate field", param=_repeated(body), code="invalid_json")
    return value


def is_empty(value: Any) -> bool:
    """Whether a JSON value is empty: null, "", or a list or object of empty values."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value is None or value == "" or (isinstance(value, list) and all(map(is_empty, value)))


def _bounded(body: bytes | bytearray) -> int:
    """Check the limits of a JSON text; return the number of fields of its objects."""
    at = depth = values = fields = escapes = 0
    while at < len(body):
        quote = body.find(b'"', at)
        end = quote if quote >= 0 else len(body)
        for start in range(at, end, _WINDOW):
            part = body[start : min(start + _WINDOW, end)]
            fields += part.count(b":")
            opened = part.count(b"[") + part.count(b"{")
            values += part.count(b",") + opened
            if values > MAX_JSON_VALUES:
                raise invalid(f"the body has more than {MAX_JSON_VALUES:,} values", code="invalid_json")
            if _LONG.search(part):
                raise _not_json(f"a number of more than {MAX_NUMBER_CHARACTERS} characters")
            if not opened and b"]" not in part and b"}" not in part:
                continue
            for bracket in _BRACKETS.findall(part):
                depth += 1 if bracket in b"[{" else -1
                if depth > MAX_JSON_DEPTH:
                    raise invalid(f"the body is nested more than {MAX_JSON_DEPTH} levels deep", code="invalid_json")
                if depth < 0:
                    raise _not_json("unmatched closing bracket")
        if quote < 0:
            break
        values += 1
        at, found = _after_string(body, quote + 1, MAX_ESCAPES - escapes)
        escapes += found
    return fields


def _after_string(body: bytes | bytearray, at: int, most: int) -> tuple[int, int]:
    """Return the end of the string that starts at ``at``, and its number of escapes (at most ``most``)."""
    escapes, end = 0, -1
    while True:
        if end < at:
            end = body.find(b'"', at)
            if end < 0:
                raise _not_json("unterminated string")
        slash = body.find(b"\\", at, end)
        if slash < 0:
            return end + 1, escapes
        escapes += 1
        if escapes > most:
            raise invalid(f"the body has more than {MAX_ESCAPES:,} escapes", code="invalid_json")
        at = slash + 2


def _fields(value: Any) -> int:
    """Count the fields of all objects of a value, at all levels."""
    if isinstance(value, dict):
        return len(value) + sum(map(_fields, value.values()))
    if isinstance(value, list):
        return sum(map(_fields, value))
    if isinstance(value, float) and not math.isfinite(value):
        raise _not_json("a number is too large")
    return 0


def _repeated(body: bytes | bytearray) -> str | None:
    """Return the first duplicate field."""
    found: list[str] = []

    def seen(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for k, name in enumerate(names) if name in names[:k])

    json.loads(body, object_pairs_hook=seen)
    return found[0][:64] if found else None


def _not_json(why: str) -> ApiError:
    return invalid(f"the body is not valid JSON: {why}", code="invalid_json")
