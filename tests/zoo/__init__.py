"""Tiny random multimodal LLMs, one row a family, for tests that hold for every family.

Every row builds on the CPU from a config alone: no network, no checkpoint, no processor.
"""

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

ZOO: dict[str, Tiny] = {
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

FOUNDATION: tuple[str, ...] = (
    "llava", "llava_gqa", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "internvl", "idefics3",
    "smolvlm", "paligemma", "paligemma2", "gemma3", "mistral3", "qwen2_audio", "voxtral", "audioflamingo3",
)  # fmt: skip

__all__ = ["FOUNDATION", "UNBUILDABLE", "ZOO", "Tiny"]
