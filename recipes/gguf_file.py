"""Read a GGUF file, without the ``gguf`` package: metadata, and tensors in the few types that are needed here.

Layout and block formats: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ``ggml-common.h``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limelight.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # weights per block of a quantised type


@dataclass
class File:
    """Metadata by key, and dequantised tensors (float32, rows first) by name."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def _float(raw: np.ndarray) -> np.ndarray:
    return raw.view(np.float32)


def _half(raw: np.ndarray) -> np.ndarray:
    return raw.view(np.float16).astype(np.float32)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """Per block: a float16 scale d and 32 int8 q; the weight is d q."""
    blocks = raw.reshape(-1, 2 + _BLOCK)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """Per block: float16 d and m, then 16 bytes, low halves first; the weight is d q + m."""
    blocks = raw.reshape(-1, 4 + _BLOCK // 2)
    scale, least = blocks[:, :4].copy().view(np.float16).astype(np.float32).T[..., None]
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return scale * nibbles.astype(np.float32) + least


# type -> bytes per block, weights per block, how to read
_TYPES: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (4, 1, _float),
    1: (2, 1, _half),
    3: (4 + _BLOCK // 2, _BLOCK, _q4_1),
    8: (2 + _BLOCK, _BLOCK, _q8_0),
}


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def number(self, kind: str) -> Any:
        size = struct.calcsize(f"<{kind}")
        self.at += size
        return struct.unpack(f"<{kind}", self.data[self.at - size : self.at])[0]

    def string(self) -> str:
        size = self.number("Q")
        self.at += size
        return str(self.data[self.at - size : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner = self.number("I")
            return [self.value(inner) for _ in range(self.number("Q"))]
        return self.number(_SCALARS[kind])


def read(path: Path) -> File:
    """Read a GGUF file of version 2 or 3.

    Raises:
        ModelError: no such file, cut off, or a tensor of a type that is not read here.
    """
    data = memoryview(path.read_bytes())
    reader, out = _Reader(data), File()
    if bytes(data[:4]) != b"GGUF":
        raise ModelError(f"{path} is no GGUF file", hint="fetch it again")
    reader.at = 4
    try:
        if reader.number("I") not in (2, 3):
            raise ModelError(f"{path} is of a GGUF version other than 2 and 3", hint="convert it with llama.cpp")
        tensors, pairs = reader.number("Q"), reader.number("Q")
        for _ in range(pairs):
            key = reader.string()
            out.metadata[key] = reader.value(reader.number("I"))
        places = []
        for _ in range(tensors):
            name = reader.string()
            shape = [reader.number("Q") for _ in range(reader.number("I"))][::-1]
            places.append((name, shape, reader.number("I"), reader.number("Q")))
        align = out.metadata.get("general.alignment", 32)
        start = -(-reader.at // align) * align
        for name, shape, kind, offset in places:
            if kind not in _TYPES:
                raise ModelError(f"{path}: {name} is of type {kind}", hint=f"types {sorted(_TYPES)} are read")
            size, block, dequantise = _TYPES[kind]
            count = math.prod(shape) // block * size
            raw = np.frombuffer(data, np.uint8, count, start + offset)
            out.tensors[name] = torch.from_numpy(np.ascontiguousarray(dequantise(raw)).reshape(shape).copy())
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is damaged: {error}", hint="fetch it again") from error
    return out
