"""JSON bodies from strangers: their shape is bounded before an object is made of them.

A small body can hold a million values, and each becomes an object and, where it is wrong, an error. So depth, values and the
length of numbers are counted on the bytes first, which costs no memory; strings (pictures, mostly) are skipped as a whole.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic_core import from_json

from limelight.server.limits import MAX_ESCAPES, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_NUMBER_CHARACTERS
from limelight.server.problems import ApiError, invalid

_WINDOW = 65_536  # bytes looked at in one go: other threads get their turn in between
_BRACKETS = re.compile(rb"[\[\]{}]")
_LONG = re.compile(rb"[^\s\[\]{}:,]{%d}" % (MAX_NUMBER_CHARACTERS + 1))


def read_json(body: bytes | bytearray) -> Any:
    """The value that a JSON text holds.

    Raises:
        ApiError: 400: not JSON, nested too deeply, too many values, a number that is too long or too large for a float,
            a field that is given twice.
    """
    fields = _bounded(body)
    try:
        value = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from None
    if _fields(value) != fields:
        raise invalid("a field is given twice", param=_repeated(body), code="invalid_json")
    return value


def is_empty(value: Any) -> bool:
    """Whether a JSON value says nothing: null, "", or a list or object of such values."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return value is None or value == "" or (isinstance(value, list) and all(map(is_empty, value)))


def _bounded(body: bytes | bytearray) -> int:
    """Check the shape of a JSON text; how many fields its objects have."""
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
                raise invalid(f"the body holds more than {MAX_JSON_VALUES:,} values", code="invalid_json")
            if _LONG.search(part):
                raise _not_json(f"a number of more than {MAX_NUMBER_CHARACTERS} characters")
            if not opened and b"]" not in part and b"}" not in part:
                continue
            for bracket in _BRACKETS.findall(part):
                depth += 1 if bracket in b"[{" else -1
                if depth > MAX_JSON_DEPTH:
                    raise invalid(f"the body is nested more than {MAX_JSON_DEPTH} deep", code="invalid_json")
                if depth < 0:
                    raise _not_json("a bracket closes that was not opened")
        if quote < 0:
            break
        values += 1
        at, seen = _after_string(body, quote + 1, MAX_ESCAPES - escapes)
        escapes += seen
    return fields


def _after_string(body: bytes | bytearray, at: int, most: int) -> tuple[int, int]:
    """Where the string that begins at ``at`` has ended, and how many escapes it holds (at most ``most``)."""
    escapes, end = 0, -1
    while True:
        if end < at:
            end = body.find(b'"', at)
            if end < 0:
                raise _not_json("a string does not end")
        slash = body.find(b"\\", at, end)
        if slash < 0:
            return end + 1, escapes
        escapes += 1
        if escapes > most:
            raise invalid(f"the body holds more than {MAX_ESCAPES:,} escapes", code="invalid_json")
        at = slash + 2


def _fields(value: Any) -> int:
    """How many fields the objects of a value have, all levels together."""
    if isinstance(value, dict):
        return len(value) + sum(map(_fields, value.values()))
    if isinstance(value, list):
        return sum(map(_fields, value))
    if isinstance(value, float) and not math.isfinite(value):
        raise _not_json("a number is too large")
    return 0


def _repeated(body: bytes | bytearray) -> str | None:
    """The first field that an object has twice."""
    found: list[str] = []

    def seen(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        found.extend(name for k, name in enumerate(names) if name in names[:k])

    json.loads(body, object_pairs_hook=seen)
    return found[0][:64] if found else None


def _not_json(why: str) -> ApiError:
    return invalid(f"the body is not JSON: {why}", code="invalid_json")
