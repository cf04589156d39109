"""From "which position is what" to spans with a layout: pictures as grids, sound as seconds, video as frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from limelight.errors import PromptError
from limelight.types import MODALITIES, Modality, Span


def runs(ids: Sequence[int]) -> list[Span]:
    """Maximal runs of equal modality; a partition of ``[0, len(ids))``."""
    spans: list[Span] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or ids[stop] != ids[start]:
            spans.append(Span(start, stop, MODALITIES[ids[start]]))
            start = stop
    return spans


def grown(spans: tuple[Span, ...], length: int) -> tuple[Span, ...]:
    """The same spans with generated text up to ``length`` positions."""
    stop = spans[-1].stop
    if length <= stop:
        return spans
    last = spans[-1]
    if last.modality == "text":
        return (*spans[:-1], Span(last.start, length, "text"))
    return (*spans, Span(stop, length, "text"))


def layout(
    ids: Tensor, config: Any, inputs: Mapping[str, Any], seconds: Sequence[float] = (), row: int = 0
) -> tuple[Span, ...]:
    """Spans of one row ``ids [T]`` with grids and seconds where config and inputs tell them.

    Qwen-like models hand over ``image_grid_thw`` / ``video_grid_thw``; others have a fixed number of positions a
    picture (``image_seq_length`` or the tower's grid), so a longer run is cut into that many pictures or tiles.

    Raises:
        PromptError: no position is perceptual.
    """
    spans = runs([int(i) for i in ids])
    if all(s.modality == "text" for s in spans):
        raise PromptError(
            f"no image, audio or video position among the {len(ids)} of this prompt",
            hint="put the picture or sound into the messages, or the model's placeholder into the text",
        )
    grids = {
        "image": _thw_grids(inputs.get("image_grid_thw"), config, video=False),
        "video": _thw_grids(inputs.get("video_grid_thw"), config, video=True),
    }
    lengths = iter(seconds)
    out: list[Span] = []
    for span in spans:
        if span.modality == "text":
            out.append(span)
        elif span.modality == "audio":
            duration = next(lengths, None)
            out.append(Span(span.start, span.stop, "audio", None, duration / len(span) if duration else None))
        else:
            out.extend(_pictures(span, grids[span.modality], config))
    return tuple(out)


def _thw_grids(thw: Any, config: Any, *, video: bool) -> Iterator[tuple[int, ...]]:
    if not isinstance(thw, Tensor):
        return
    vision = getattr(config, "vision_config", config)
    merge = int(getattr(vision, "spatial_merge_size", 1) or 1)
    for t, h, w in thw.tolist():
        yield (t, h // merge, w // merge) if video or t > 1 else (h // merge, w // merge)


def _pictures(span: Span, grids: Iterator[tuple[int, ...]], config: Any) -> list[Span]:
    """Cut a run into pictures: by the processor's grids when it gave some, else by the fixed size of a picture."""
    out: list[Span] = []
    start = span.start
    while start < span.stop:
        grid = next(grids, None)
        if grid is None or math.prod(grid) > span.stop - start:
            break
        out.append(Span(start, start + math.prod(grid), span.modality, grid))
        start += math.prod(grid)
    rest = span.stop - start
    if not rest:
        return out
    side = _square(config, rest, span.modality)
    if side is None:
        return [*out, Span(start, span.stop, span.modality)]
    pieces = range(start, span.stop, side * side)
    return [*out, *(Span(at, at + side * side, span.modality, (side, side)) for at in pieces)]


def _square(config: Any, length: int, modality: Modality) -> int | None:
    """Side of the square grid of one picture or tile, when ``length`` is a whole number of them."""
    candidates: list[int] = []
    for name in ("image_seq_length", "mm_tokens_per_image", "image_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            candidates.append(value)
    vision = getattr(config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    size = size[0] if isinstance(size, (list, tuple)) else size
    patch = patch[0] if isinstance(patch, (list, tuple)) else patch
    if isinstance(size, int) and isinstance(patch, int) and patch and size >= patch:
        side = size // patch
        candidates += [side * side, (side // 2) ** 2]
    candidates.append(length)
    for count in candidates:
        side = math.isqrt(count) if count > 0 else 0
        if side and side * side == count and length % count == 0:
            return side
    return None
