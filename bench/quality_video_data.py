"""The questions and captions of the video quality table, drawn once, in batches for the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

import limelight
from bench import quality_data as pictures
from bench.quality_decoders import Decoder
from limelight.demo import film_language as language
from limelight.demo.film_questions import FilmRequest, captions, questions
from limelight.demo.films import FRAMES, Film
from limelight.demo.language import YES

MODEL, MODALITY = "demo-video", "video"
TOPICS = ("what", "when", "order")
CELLS = (
    *(f"{topic}-{hint}/clear" for topic in TOPICS for hint in ("none", "E-right", "E-wrong")),
    *(f"what-{hint}/clear" for hint in ("C-right", "C-wrong")),
    *(f"{topic}-none/poor" for topic in TOPICS),
)
CAPTION_SETS = ("none", "E-wrong")
CAPTION_TOKENS, SHARE_CELL = 40, "what-E-wrong/clear"
TOKENS = 73
DECODERS = (
    Decoder("greedy", "greedy"),
    Decoder("relevance-contrastive", "relevance-contrastive"),
    Decoder("VCD", "vcd"),
    Decoder("M3ID, released", "m3id", ({"variant": "released"},)),
    Decoder("PAI", "pai"),
    Decoder("cached LIME, margin", "lime-cached", ({"objective": "margin"},)),
)
BY_NAME = {d.name: d for d in DECODERS}


def decoder(name: str) -> Decoder:
    """A row of the table."""
    return BY_NAME[name]


def mentioned(text: str) -> set[str]:
    """The objects that a caption names."""
    return set(language.mentioned(text))


def adapter() -> limelight.Adapter:
    return pictures.padded_left(MODEL)


def yes_no_ids() -> tuple[int, int]:
    """The tokens that answer: where "ASSISTANT: yes" and "ASSISTANT: no" first differ."""
    return pictures.answering(adapter())


@dataclass(frozen=True)
class Asked:
    """One request: its words, its film, what is true, and the frames that hold the evidence."""

    id: str
    text: str
    film: Film
    truth: Any
    frames: tuple[int, ...] = ()


@cache
def _pixels(film: Film) -> torch.Tensor:
    """The frames [8, 3, 48, 48] as the processor makes them."""
    return torch.from_numpy(film.pixels()).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _asked(items: Sequence[FilmRequest], yes_no: bool) -> list[Asked]:
    return [Asked(q.id, q.text, q.film, q.truth == YES if yes_no else frozenset(q.film.names), q.frames) for q in items]


def cell(split: Any, name: str, n: int) -> list[Asked]:
    """Questions of a cell; ``truth`` is (label is yes)."""
    return _asked(questions(split, name, n), True)


def caption_set(split: Any, name: str, n: int) -> list[Asked]:
    """Caption requests about clear films; ``truth`` is the set of objects."""
    return _asked(captions(split, name, n), False)


def inputs(batch: list[Asked]) -> dict[str, Any]:
    """Left-padded tensors of a batch, equal to the processor's."""
    own = adapter()
    turns = [[{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": a.text}]}] for a in batch]
    texts = own.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    mark = own.processor.video_token
    out = own.tokenizer(
        [t.replace(mark, mark * TOKENS) for t in texts], padding=True, return_tensors="pt", add_special_tokens=False
    )
    pixels = torch.stack([_pixels(a.film) for a in batch])  # [n, 8, 3, 48, 48]
    return {
        "input_ids": out["input_ids"],
        "attention_mask": out["attention_mask"],
        "pixel_values_videos": pixels,
    }


def batches(asked: list[Asked], size: int) -> Iterator[tuple[list[Asked], dict[str, Any]]]:
    """Batches of similar length, so that padding costs little."""
    return pictures.batched(asked, size, inputs)


def per_frame(relevance: Any) -> np.ndarray[Any, Any]:
    """Sum of ``|R|`` in each frame [8]."""
    scores: np.ndarray[Any, Any] = relevance.on_grid(0, "video").abs().sum((1, 2)).numpy()
    return scores


def inside(asked: Asked, relevance: Any) -> tuple[float, float] | None:
    """Relevance inside the true frames over all relevance on the film, and its chance level; None without them."""
    if not asked.frames:
        return None
    scores = per_frame(relevance)
    return float(scores[list(asked.frames)].sum() / scores.sum()), len(asked.frames) / FRAMES


def probe_margins(split: Any, name: str, n: int) -> np.ndarray[Any, Any]:
    """The probe's margin for each question of a cell: what the video tokens tell."""
    from recipes.demo_video.evaluate import SHIPPED, features_of, probe_margins

    from limelight.demo.probe import FrameProbe

    items = questions(split, name, n)
    model: Any = adapter().model
    probe = FrameProbe.load(SHIPPED / "probe.safetensors")
    found: np.ndarray[Any, Any] = probe_margins(
        model, probe, items, features_of(model, [q.film for q in items])
    ).numpy()
    return found
