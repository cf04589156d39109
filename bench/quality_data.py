"""The questions and captions of the quality table, rendered once, in batches for the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import limelight
from limelight.demo import language
from limelight.demo.questions import captions, questions

MODEL, MODALITY = "demo-vision", "image"
CACHE = Path(".cache/quality")
TEXT_CELLS = tuple(f"{s}/{v}" for v in ("clear", "poor") for s in ("none", "E-right", "E-wrong", "C-right", "C-wrong"))
IMAGE_CELLS = ("random/clear", "popular/clear", "adversarial/clear")
CELLS = TEXT_CELLS + IMAGE_CELLS
CAPTION_SETS = ("none", "E-wrong")


def decoder(name: str) -> Any:
    """A row of the table."""
    from bench.quality_decoders import BY_NAME

    return BY_NAME[name]


def mentioned(text: str) -> set[str]:
    """The objects that a caption names."""
    return language.mentioned(text)


@cache
def padded_left(model: str) -> limelight.Adapter:
    """A shipped model, whose batches are padded on the left."""
    loaded = limelight.load(model)
    loaded.processor.tokenizer.padding_side = "left"
    return loaded


def adapter() -> limelight.Adapter:
    return padded_left(MODEL)


@cache
def yes_no_ids() -> tuple[int, int]:
    return answering(adapter())


def answering(own: limelight.Adapter) -> tuple[int, int]:
    """The tokens that answer: where "ASSISTANT: yes" and "ASSISTANT: no" first differ."""
    encode = own.tokenizer.encode
    yes, no = encode(f"ASSISTANT: {language.YES}"), encode(f"ASSISTANT: {language.NO}")
    return next((a, b) for a, b in zip(yes, no, strict=False) if a != b)


@dataclass(frozen=True)
class Asked:
    """One request: its words, its picture, and what is true."""

    id: str
    text: str
    image: Any
    truth: Any


def _pictures(name: str, scenes: list[Any]) -> list[Any]:
    """The scenes' pictures, drawn once and kept as bytes: drawing costs more than a cheap decoder's answer."""
    from PIL import Image

    path = CACHE / f"pictures-{name}-{len(scenes)}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        drawn = np.stack([np.asarray(scene.image()) for scene in scenes])
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, drawn)
        part.rename(path)
    return [Image.fromarray(np.array(row)) for row in np.load(path, mmap_mode="r")]


def cell(split: str, name: str, n: int) -> list[Asked]:
    """Questions of a cell; ``truth`` is (label is yes). The five text sets of a visibility share their pictures."""
    kind, seen = name.split("/")
    asked = questions(split, name, n)
    drawn = _pictures(f"{split}-{'text' if name in TEXT_CELLS else kind}-{seen}", [q.scene for q in asked])
    return [Asked(q.id, q.text, image, q.label == language.YES) for q, image in zip(asked, drawn, strict=True)]


def caption_set(split: str, name: str, n: int) -> list[Asked]:
    """Caption requests; ``truth`` is the set of objects in the picture."""
    asked = captions(split, name, n)
    drawn = _pictures(f"{split}-captions", [c.scene for c in asked])
    return [Asked(c.id, c.text, image, c.objects) for c, image in zip(asked, drawn, strict=True)]


def inputs(batch: list[Asked]) -> dict[str, Any]:
    """Left-padded tensors of a batch."""
    own = adapter()
    template = own.processor.apply_chat_template
    turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": a.text}]}] for a in batch]
    texts = [template(t, add_generation_prompt=True, tokenize=False) for t in turns]
    bos = own.tokenizer.bos_token
    special = not (bos and texts[0].startswith(bos))
    out = own.processor(
        text=texts, images=[a.image for a in batch], padding=True, return_tensors="pt", add_special_tokens=special
    )
    return dict(out)


def batches(asked: list[Asked], size: int) -> Iterator[tuple[list[Asked], dict[str, Any]]]:
    return batched(asked, size, inputs)


def batched(asked: list[Any], size: int, make: Callable[[list[Any]], dict[str, Any]]) -> Iterator[Any]:
    """Batches of similar length with their tensors, so that padding costs little."""
    order = sorted(asked, key=lambda a: (len(a.text.split()), a.id))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield part, make(part)


def inside(asked: Asked, relevance: Any) -> tuple[float, float] | None:
    """Relevance inside the object's box: not part of this table."""
    return None


def probe_margins(asked: list[Asked], names: list[str]) -> np.ndarray[Any, Any]:
    """The probe's margin for "is there a NAME": what the image tokens tell, whatever the language model makes of it."""
    from limelight.demo.probe import Probe
    from limelight.demo.scenes import OBJECTS

    model, probe = adapter().model, Probe.load()
    out: dict[str, float] = {}
    wanted = dict(zip([a.id for a in asked], names, strict=True))
    with torch.no_grad():
        for part, tensors in batches(asked, 50):
            features = model.get_image_features(pixel_values=tensors["pixel_values"])
            tokens = features.pooler_output if hasattr(features, "pooler_output") else features
            scores = probe(torch.stack(list(tokens)) if isinstance(tokens, (list, tuple)) else tokens)
            for a, row in zip(part, scores, strict=True):
                out[a.id] = float(row[OBJECTS.index(wanted[a.id])])
    return np.array([out[a.id] for a in asked])
