"""Hand-made generations for the report's tests: no model is needed to draw one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from limelight.types import Generation, Interval, Modality, Prompt, Region, Relevance, Span, Step

BEFORE = ("<s>", "USER", ":", " ")
AFTER = (
    " There",
    " is",
    " no",
    " cup",
    ".",
    " Is",
    " there",
    " a",
    " cup",
    " in",
    " the",
    " picture",
    "?",
    " ASSISTANT",
    ":",
)


def picture(width: int = 112, height: int = 112) -> Image.Image:
    """A grey picture with a disc at its upper left."""
    image = Image.new("RGB", (width, height), (150, 155, 160))
    ImageDraw.Draw(image).ellipse((0.12 * width, 0.12 * height, 0.45 * width, 0.45 * height), fill=(200, 120, 40))
    return image


def prompt(*media_spans: tuple[Modality, int, tuple[int, ...] | None, float | None], media: dict[str, list[object]] | None = None,
           after: Sequence[str] = AFTER, placed: bool = True) -> Prompt:  # fmt: skip
    """Text, then spans of (modality, length, grid, seconds a position), then text.

    ``placed``: the ``i``-th image span with a grid shows all of the ``i``-th picture, and so for sounds.
    """
    tokens, spans = list(BEFORE), [Span(0, len(BEFORE), "text")]
    for modality, length, grid, seconds in media_spans:
        number = sum(s.modality == "image" for s in spans)
        whole = Region(number, (112, 112), (0, 0, 112, 112)) if placed and modality == "image" and grid else None
        sounds = sum(s.modality == "audio" for s in spans)
        heard = Interval(sounds, 0.0, length * seconds) if placed and modality == "audio" and seconds else None
        spans.append(Span(len(tokens), len(tokens) + length, modality, grid, seconds, region=whole, interval=heard))
        tokens += [f"<{modality}>"] * length
    spans.append(Span(len(tokens), len(tokens) + len(after), "text"))
    return Prompt({}, (*tokens, *after), tuple(spans), media or {})


def relevance(of: Prompt, target: int, text: str, *, generated: Sequence[str] = (), peak: tuple[float, float] = (0.25, 0.25),
              seed: int = 0, logit: float = 5.0) -> Relevance:  # fmt: skip
    """Noise, a bump at ``peak`` (fractions of rows, columns) of every grid, and large scores on two words of the text."""
    generator = torch.Generator().manual_seed(seed)
    length = len(of.tokens) + len(generated)
    scores = torch.randn(length, generator=generator) * 0.03
    for span in of.spans:
        if span.modality == "text":
            continue
        rows, columns = (span.grid or (1, len(span)))[-2:]
        frames = len(span) // (rows * columns)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        bump = torch.exp(-((y - peak[0] * rows) ** 2 + (x - peak[1] * columns) ** 2) / (0.02 * rows * columns + 0.5))
        scores[span.start : span.stop] += torch.cat([bump.reshape(-1) * (t + 1) / frames for t in range(frames)])
    scores[len(of.tokens) - 12] += 0.9
    scores[len(of.tokens) - 13] -= 0.6
    spans = (*of.spans[:-1], Span(of.spans[-1].start, length, "text"))
    return Relevance(scores, (*of.tokens, *generated), spans, target, text, logit)


def generation(of: Prompt, pieces: Sequence[str], *, strategy: str = "greedy", text: str | None = None, seed: int = 0,
               details: bool = True, plain: dict[int, int] | None = None, special: Sequence[str] = ()) -> Generation:  # fmt: skip
    """An answer of ``pieces`` as a byte-level tokenizer spells them; ``special`` tokens follow and are not shown."""
    steps = []
    for i, piece in enumerate([*pieces, *special]):
        token = 10 + i
        r = (
            relevance(of, token, piece, generated=pieces[:i], seed=seed + i, peak=(0.2 + 0.1 * (i % 6), 0.25))
            if details
            else None
        )
        steps.append(
            Step(
                token, piece, math.log(0.9), r, r.shares() if r else {}, intervened=strategy != "greedy",
                plain=(plain or {}).get(i, token if details else None),
                losses={"relevance": (3.2, 2.9), "kl": (0.0, 0.01)} if strategy == "lime" else {},
                candidates=((token, piece, 5.0, 1.2), (9, " mug", 4.1, -0.3)) if strategy == "meter" else (),
                flagged=strategy == "meter" and i == 1,
                contributions={"text": 0.75, "image": 0.25} if strategy == "meter" else {},
            )
        )  # fmt: skip
    said = "".join(pieces).strip() if text is None else text
    settings = {"lr": 0.01, "steps": 7, "layers": None} if strategy == "lime" else {}
    ended = bool(special)
    return Generation(said, tuple(s.token for s in steps), tuple(steps), of, strategy, settings, ended=ended)


def tone(seconds: float = 2.0, rate: int = 8000) -> tuple[np.ndarray, int]:
    """A swelling tone."""
    t = np.arange(int(seconds * rate)) / rate
    return (np.sin(2 * np.pi * 440 * t) * np.exp(-(((t - seconds * 0.6) / 0.3) ** 2))).astype(np.float32), rate
