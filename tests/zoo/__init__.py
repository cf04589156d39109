"""Tiny random multimodal LLMs, one row a family, for tests that hold for every family.

Every row builds on the CPU from a config alone: no network, no checkpoint, no processor.
"""

import pytest
import transformers

from . import (
    blip,
    codes,
    cohere,
    cross,
    experts,
    further,
    gemma,
    gemma3n,
    gemma4,
    glm,
    llava,
    more,
    newest,
    ocr,
    omni,
    phi,
    published,
    qwen,
    qwen3,
    recent,
    sound,
    speech,
    stand_in,
    tower,
    video,
)  # fmt: skip
from .base import Tiny
from .unbuildable import UNBUILDABLE

ROWS: dict[str, Tiny] = {
    row.name: row
    for rows in (
        llava.ROWS,
        qwen.ROWS,
        tower.ROWS,
        gemma.ROWS,
        sound.ROWS,
        qwen3.ROWS,
        glm.ROWS,
        omni.ROWS,
        video.ROWS,
        cohere.ROWS,
        experts.ROWS,
        phi.ROWS,
        blip.ROWS,
        cross.ROWS,
        codes.ROWS,
        speech.ROWS,
        gemma4.ROWS,
        ocr.ROWS,
        more.ROWS,
        recent.ROWS,
        newest.ROWS,
        gemma3n.ROWS,
        stand_in.ROWS,
        published.ROWS,
        further.ROWS,
    )
    for row in rows
}
ABSENT = {name: row.missing for name, row in ROWS.items() if row.missing}


class Zoo(dict[str, Tiny]):
    """Rows by name. Asking for a family that the installed release of transformers does not have skips the test."""

    def __missing__(self, name: str) -> Tiny:
        if name not in ABSENT:
            raise KeyError(name)
        missing = ", ".join(sorted(ABSENT[name]))
        pytest.skip(f"transformers {transformers.__version__} has no {missing}", allow_module_level=True)


ZOO = Zoo({name: row for name, row in ROWS.items() if name not in ABSENT})

FOUNDATION: tuple[str, ...] = (
    "llava", "llava_gqa", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "internvl", "idefics3",
    "smolvlm", "paligemma", "paligemma2", "gemma3", "mistral3", "qwen2_audio", "voxtral", "audioflamingo3",
)  # fmt: skip

__all__ = ["ABSENT", "FOUNDATION", "ROWS", "UNBUILDABLE", "ZOO", "Tiny"]
