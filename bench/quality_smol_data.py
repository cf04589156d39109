"""The questions and captions of smol-vision's quality table: scenes of dev and test cut-outs, hints as a test condition.

A module of the same functions as :mod:`bench.quality_data`. Its cells have the same names; ``poor`` are things that are
small and faint in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from recipes.real_vision import questions
from recipes.real_vision.nouns import CANDIDATES
from recipes.real_vision.text import NO, YES, says

import limelight
from bench.quality_data import CAPTION_SETS, CELLS, IMAGE_CELLS, TEXT_CELLS, Asked, batched

MODEL, MODALITY = "smol-vision", "image"
CACHE = Path(".cache/quality-smol")
BATCH = 8  # larger ones are slower per question on a CPU
__all__ = ["CAPTION_SETS", "CELLS", "IMAGE_CELLS", "MODALITY", "MODEL", "TEXT_CELLS"]


def decoder(name: str) -> Any:
    """A row of the table."""
    from bench.quality_smol_decoders import BY_NAME

    return BY_NAME[name]


def mentioned(text: str) -> set[str]:
    """The nouns that a caption names, those included that no scene shows."""
    return set(says(text, CANDIDATES))


@cache
def adapter() -> limelight.Adapter:
    return limelight.load(MODEL)


@cache
def yes_no_ids() -> tuple[int, int]:
    """The first tokens of the two answers."""
    yes, no = (adapter().tokenizer.encode(word, add_special_tokens=False)[0] for word in (YES, NO))
    return yes, no


def cell(split: str, name: str, n: int) -> list[Asked]:
    """Questions of a cell; ``truth``: whether the thing is there."""
    return [Asked(q.id, q.text, q.picture.image, q.present) for q in questions.questions(split, name, n)]


def caption_set(split: str, name: str, n: int) -> list[Asked]:
    """Caption requests; ``truth`` is the set of nouns in the picture."""
    asked = questions.captions(split, name, n)
    return [Asked(c.id, c.text, c.picture.image, frozenset(c.picture.nouns)) for c in asked]


def inputs(batch: list[Asked]) -> dict[str, Any]:
    """Left-padded tensors of a batch."""
    own = adapter()
    template = own.processor.apply_chat_template
    turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": a.text}]}] for a in batch]
    texts = [template(t, add_generation_prompt=True, tokenize=False) for t in turns]
    return dict(own.processor(text=texts, images=[a.image for a in batch], padding=True, return_tensors="pt"))


def batches(asked: list[Asked], size: int) -> Iterator[tuple[list[Asked], dict[str, Any]]]:
    return batched(asked, size, inputs)


def inside(asked: Asked, relevance: Any) -> tuple[float, float] | None:
    """Relevance inside the object's box: not part of this table."""
    return None
