"""Converting modality ids to spans with a layout: images as grids, audio in seconds, video as frames."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from limelight.types import MODALITIES, Modality, Span

Size = tuple[int, int]
# Lays out one run of image or video positions: (run, config, queue of the sizes (height, width) of the remaining images,
# from which it removes those it has laid out) -> spans.
Pictures = Callable[[Span, Any, deque[Size]], list[Span]]


def runs(ids: Sequence[int]) -> list[Span]:
    """Return the maximal runs of equal modality, a partition of ``[0, len(ids))``."""
    spans: list[Span] = []
    start = 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or ids[stop] != ids[start]:
            spans.append(Span(start, stop, MODALITIES[ids[start]]))
            start = stop
    return spans


def grown(spans: tuple[Span, ...], length: int) -> tuple[Span, ...]:
    """Return the spans extended with generated text to ``length`` positions."""
    stop = spans[-1].stop
    if length <= stop:
        return spans
    last = spans[-1]
    if last.modality == "text":
        return (*spans[:-1], replace(last, stop=length))
    return (*spans, Span(stop, length, "text"))


def layouts(
    ids: Tensor,
    config: Any,
    inputs: Mapping[str, Any],
    seconds: Sequence[float] = (),
    pictures: Pictures | None = None,
    queries: int | None = None,
) -> list[tuple[Span, ...]]:
    """Return the spans of every row of ``ids [B, T]`` (indices into MODALITIES), with grids and seconds where known.

    Images of a batch are stacked in order, so the rows are laid out together. Qwen-like models provide ``image_grid_thw``
    and ``video_grid_thw``; others have a fixed number of positions per image, so a longer run is split into several
    images or tiles; ``pictures`` is a family's own layout function.

    Args:
        seconds: length of every audio input (or of every audio window) of the batch.
        queries: number of a resampler's learned queries per image; each may attend anywhere, so they have no spatial
            layout.
    """
    rows = [runs(row) for row in ids.tolist()]
    sounds = [s for row in rows for s in row if s.modality == "audio"]
    each = dict(zip(map(id, sounds), _seconds_each(sounds, seconds), strict=True))
    grids = {
        "image": deque(_thw_grids(inputs.get("image_grid_thw"), config)),
        "video": deque(_thw_grids(inputs.get("video_grid_thw"), config)),
    }
    given = inputs.get("image_sizes")
    listed = given.tolist() if isinstance(given, Tensor) else given or []
    sizes = deque((int(h), int(w)) for h, w in listed)

    def laid(span: Span) -> list[Span]:
        if span.modality == "text":
            return [span]
        if span.modality == "audio":
            return [Span(span.start, span.stop, "audio", None, each[id(span)])]
        if queries is not None:
            return _resampled(span, queries)
        if pictures is not None:
            return pictures(span, config, sizes)
        return _pictures(span, grids[span.modality], config)

    return [tuple(piece for span in row for piece in laid(span)) for row in rows]


def _seconds_each(sounds: Sequence[Span], seconds: Sequence[float]) -> list[float | None]:
    """Return the seconds per position of each run: its own audio's, or the batch mean if windows and runs do not match."""
    total = sum(len(s) for s in sounds)
    if not total or not sum(seconds):
        return [None] * len(sounds)
    if len(sounds) == len(seconds):
        return [length / len(span) for span, length in zip(sounds, seconds, strict=True)]
    return [sum(seconds) / total] * len(sounds)


def _thw_grids(thw: Any, config: Any) -> Iterator[tuple[int, int, int]]:
    if isinstance(thw, Tensor):
        vision = getattr(config, "vision_config", config)
        merge = int(getattr(vision, "spatial_merge_size", 1) or 1)
        for t, h, w in thw.tolist():
            yield int(t), h // merge, w // merge


def _pictures(span: Span, grids: deque[tuple[int, int, int]], config: Any) -> list[Span]:
    """Split a run into images: by the processor's grids if given, else by the fixed size of an image."""
    out: list[Span] = []
    start = span.start
    while start < span.stop and grids:
        t, h, w = grids[0]
        frames = min(t, (span.stop - start) // (h * w))  # a video may have one run per frame
        if frames == 0:
            break
        grids.popleft()
        if frames < t:
            grids.appendleft((t - frames, h, w))
        grid = (h, w) if span.modality == "image" and t == 1 else (frames, h, w)
        out.append(Span(start, start + frames * h * w, span.modality, grid))
        start += frames * h * w
    if start < span.stop:
        out += squares(Span(start, span.stop, span.modality), config)
    return out


def _resampled(span: Span, queries: int) -> list[Span]:
    if len(span) % queries:
        return [span]
    return [Span(at, at + queries, span.modality) for at in range(span.start, span.stop, queries)]


def squares(span: Span, config: Any) -> list[Span]:
    """Split a run into square images (for a video: frames) of the config's size; unchanged if no size fits."""
    length = len(span)
    for side in _sides(config, length):
        count = side * side
        if side > 1 and length % count == 0:
            if span.modality == "video":
                return [Span(span.start, span.stop, "video", (length // count, side, side))]
            return [Span(at, at + count, span.modality, (side, side)) for at in range(span.start, span.stop, count)]
        if length % (count + 1) == 0 and getattr(config, "vision_feature_select_strategy", None) == "full":
            starts = range(span.start, span.stop, count + 1)  # each picture starts with its class token
            return [
                piece
                for at in starts
                for piece in (
                    Span(at, at + 1, span.modality),
                    Span(at + 1, at + count + 1, span.modality, (side, side)),
                )
            ]
    return [Span(span.start, span.stop, span.modality, (1, 1) if length == 1 and span.modality == "image" else None)]


def tower_side(config: Any) -> int | None:
    """Return the number of patches along one side of the vision encoder's square input."""
    vision = getattr(config, "vision_config", None)
    size, patch = (_first(getattr(vision, name, None)) for name in ("image_size", "patch_size"))
    return size // patch if size and patch and size >= patch else None


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, int) else None


def _sides(config: Any, length: int) -> Iterator[int]:
    """Yield possible side lengths of an image, most reliable first, and finally the whole run as one square."""
    counts = [getattr(config, name, None) for name in ("image_seq_length", "mm_tokens_per_image", "image_seq_len")]
    side = tower_side(config)
    if side is not None:
        ratio, factor = getattr(config, "downsample_ratio", None), getattr(config, "scale_factor", None)
        if isinstance(ratio, float):
            counts.append(round(side * ratio) ** 2)
        elif isinstance(factor, int) and factor > 0:
            counts.append((side // factor) ** 2)
        else:
            counts += [side * side, (side // 2) ** 2]
    for count in [*counts, length]:
        if isinstance(count, int) and count > 0 and math.isqrt(count) ** 2 == count:
            yield math.isqrt(count)


def newline_grid(start: int, rows: int, columns: int, modality: Modality = "image") -> Span:
    """Return a grid span whose rows each end in a non-media position: a newline embedding or a row-break token."""
    return Span(start, start + rows * (columns + 1), modality, (rows, columns + 1), margin=1)
