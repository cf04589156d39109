"""Mapping spans to regions of the original media, by running the processor on test charts and matching its tiles.

See :mod:`limelight.media.geometry` for the charts. A span's region is None if it cannot be determined: a resampler whose
queries attend anywhere, tiles that do not match the spans, a processor whose output is not linear in the image.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from limelight.errors import LimelightError
from limelight.media import geometry
from limelight.media.geometry import Tile
from limelight.types import Box, Clip, Interval, Region, Span

# Runs the processor on other media in the same prompt: (images, videos [T, H, W, 3]) -> its output.
Process = Callable[[list[Any], list[Any]], Mapping[str, Any]]
KEPT = 32  # number of prompt shapes whose charts an adapter caches
EMPTY: Box = (0.0, 0.0, 0.0, 0.0)  # the box of a tile that contains only padding
ENTRIES = 128  # entries sampled from each flattened patch
_REFUSALS = (LimelightError, ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError)


@dataclass(frozen=True)
class Original:
    """An image or a video as passed to the processor: (width, height), and the number of frames (0: an image)."""

    size: tuple[int, int]
    frames: int = 0


def originals(pictures: Sequence[Image.Image], clips: Sequence[Clip]) -> list[Original]:
    return [Original(p.size) for p in pictures] + [Original(c.frames[0].size, len(c)) for c in clips]


def located(spans: tuple[Span, ...], process: Process, media: Sequence[Original], adapter: Any) -> tuple[Span, ...]:
    """Return the spans of one prompt, with regions set for images and videos where they can be determined.

    Args:
        media: all images, then all videos, in the order of the prompt.
        adapter: caches the tiles by the sizes of the media.
    """
    if not media:
        return spans
    key = (tuple(media), repr(vars(getattr(adapter.processor, "image_processor", None) or object)))
    kept: OrderedDict[Any, dict[str, list[Tile]]] = adapter.charted
    if key not in kept:
        kept[key] = tiles(process, media, adapter)
        while len(kept) > KEPT:
            kept.popitem(last=False)
    found = kept[key]
    for modality in ("image", "video"):
        names = [n for n in found if ("video" in n) == (modality == "video")] or list(found)
        mine = [s for s in spans if s.modality == modality]
        for name in names:
            regions = _matched(mine, found[name], media, adapter.family.whole_last)
            if adapter.resampler is not None:  # queries attend anywhere, so a grid of them has no spatial meaning
                regions = [None if s.grid is not None else r for s, r in zip(mine, regions, strict=True)]
            if any(regions):
                by_start = {s.start: r for s, r in zip(mine, regions, strict=True)}
                spans = tuple(replace(s, region=by_start[s.start]) if s.modality == modality else s for s in spans)
                break
    return spans


def tiles(process: Process, media: Sequence[Original], adapter: Any) -> dict[str, list[Tile]]:
    """Return the tiles of every pixel tensor of the processor's output, in order; {} if the charts cannot be processed."""
    names = [*geometry.RAMPS, *(["which"] if len(media) > 1 else [])]
    if any(1 < m.frames <= geometry.MOST_LEVELS for m in media):
        names.append("when")
    outputs: dict[str, Mapping[str, Any]] = {}
    try:
        for name in names:
            drawn = [_chart(name, m, i, len(media)) for i, m in enumerate(media)]
            pictures = [Image.fromarray(d[0]) for d, m in zip(drawn, media, strict=True) if not m.frames]
            outputs[name] = process(pictures, [d for d, m in zip(drawn, media, strict=True) if m.frames])
    except _REFUSALS:  # the real media were accepted, the charts were not: regions stay unknown
        return {}
    out: dict[str, list[Tile]] = {}
    for key in sorted(outputs["dark"], key=lambda k: (not k.startswith("pixel_values"), k)):
        arrays = {n: _arrays(o.get(key)) for n, o in outputs.items()}
        shapes = {tuple(a.shape for a in parts) for parts in arrays.values()}
        if len(shapes) != 1 or not arrays["dark"]:
            continue
        if all(np.array_equal(a, b) for a, b in zip(arrays["dark"], arrays["light"], strict=True)):
            continue
        found = _of_tensor(key, arrays, outputs["dark"], media, adapter)
        if found:
            out[key] = found
    return out


def _chart(name: str, original: Original, index: int, count: int) -> Any:
    """Return a chart for each frame of one original, ``[max(1, frames), height, width, 3]``."""
    frames = max(1, original.frames)
    if name == "which":
        drawn = [geometry.flat(geometry.level(index, count), original.size)] * frames
    elif name == "when":
        drawn = [geometry.flat(geometry.level(t, frames), original.size) for t in range(frames)]
    else:
        drawn = [geometry.chart(name, original.size)] * frames
    return np.stack(drawn)


def _arrays(value: Any) -> list[geometry.Array]:
    if isinstance(value, Tensor):
        return [_thin(value.detach().cpu().float().numpy())] if value.is_floating_point() else []
    if isinstance(value, np.ndarray):
        return [_thin(value.astype(np.float32))] if value.dtype.kind == "f" else []
    return [a for v in value for a in _arrays(v)] if isinstance(value, (list, tuple)) else []


def _thin(array: Any) -> geometry.Array:
    """Reduce an output to what is needed: one channel, as charts are grey, and a sample of each patch's entries."""
    if array.ndim >= 4 and array.shape[-3] == 3:
        array = array[..., :1, :, :]
    elif array.ndim >= 4 and array.shape[-1] == 3:
        array = np.moveaxis(array[..., :1], -1, -3)
    elif array.ndim == 2 and array.shape[1] > ENTRIES:
        array = array[:, np.rint(np.linspace(0, array.shape[1] - 1, ENTRIES)).astype(int)]
    return np.array(array, dtype=np.float64)


def _of_tensor(
    key: str,
    arrays: Mapping[str, list[geometry.Array]],
    out: Mapping[str, Any],
    media: Sequence[Original],
    adapter: Any,
) -> list[Tile]:
    grids = _grids(out, "video" if "video" in key else "image")
    found: list[Tile] = []
    for part in range(len(arrays["dark"])):
        readings = geometry.read({n: a[part] for n, a in arrays.items()})
        shape = readings["across"].shape
        if grids and shape[0] == sum(t * h * w for t, h, w in grids):
            found += _sheets(readings, grids, media, adapter)
        elif len(shape) >= 4 and shape[-3] == 1:
            found += _pictures(readings, media)
    sizes = out.get("image_sizes")
    if isinstance(sizes, Tensor) and arrays["dark"][0].ndim == 4 and len(sizes) == len(found):
        fits = all(h <= t.shape[0] and w <= t.shape[1] for (h, w), t in zip(sizes.tolist(), found, strict=True))
        if fits:  # padded to the largest of the batch; the padding gets no positions
            return [t.cropped((h, w)) for (h, w), t in zip(sizes.tolist(), found, strict=True)]
    return found


def _grids(out: Mapping[str, Any], kind: str) -> list[tuple[int, int, int]]:
    for name in (f"{kind}_grid_thw", f"{kind}_grid_hw"):
        value = out.get(name)
        if isinstance(value, Tensor) and value.ndim == 2:
            return [(1, *row) if len(row) == 2 else tuple(row) for row in value.tolist()]
    return []


def _sheets(readings: Mapping[str, geometry.Array], grids: Sequence[tuple[int, int, int]],
            media: Sequence[Original], adapter: Any) -> list[Tile]:  # fmt: skip
    config = adapter.parent_model.config
    merge = int(getattr(getattr(config, "vision_config", config), "spatial_merge_size", 1) or 1)
    out, at = [], 0
    for grid in grids:
        count = grid[0] * grid[1] * grid[2]
        part = {n: r[at : at + count].reshape(count, -1) for n, r in readings.items()}
        at += count
        which, when = part.get("which"), part.get("when")
        if np.isnan(part["across"]).all():
            out.append(Tile(None, None))
            continue
        medium = geometry.most(which, len(media))
        own = media[medium]
        out.append(geometry.sheet(part["across"], part["down"], grid, merge, own.size, when, own.frames, medium))
    return out


def _pictures(readings: Mapping[str, geometry.Array], media: Sequence[Original]) -> list[Tile]:
    flat = {n: r.reshape(-1, *r.shape[-3:]) for n, r in readings.items()}
    sizes, counts = [m.size for m in media], [m.frames for m in media]
    out: list[Tile] = []
    for i in range(len(flat["across"])):
        which, when = (flat[n][i] if n in flat else None for n in ("which", "when"))
        out.append(geometry.tile(flat["across"][i], flat["down"][i], sizes, which, when, counts))
    return out


def _matched(
    spans: Sequence[Span], found: Sequence[Tile], media: Sequence[Original], whole_last: bool
) -> list[Region | None]:
    """Return a region for every span of one modality."""
    shown = [t for t in found if t.medium is not None]
    unknown: list[Region | None] = [None] * len(spans)
    laid = [i for i, s in enumerate(spans) if s.grid is not None]
    if any(t.box is None for t in shown) or not shown:
        return unknown
    groups = [list(g) for _, g in groupby(shown, key=lambda t: t.medium)]
    steps = sum(len(t.steps) for t in shown)
    deep = [spans[i].grid[0] if len(spans[i].grid or ()) == 3 else 1 for i in laid]  # type: ignore[index]
    out = list(unknown)
    if steps and sum(deep) == steps and len(laid) != len(found):
        moments = [(t, moment) for t in shown for moment in t.steps]
        at = 0
        for i, n in zip(laid, deep, strict=True):
            part = moments[at : at + n]
            at += n
            if len({(t.medium, t.box) for t, _ in part}) == 1:
                out[i] = _region(part[0][0], media, frames=tuple(moment for _, moment in part))
        return out
    for chosen in (list(found), shown):
        if len(laid) == len(chosen) and all(len(t.steps) in (0, n) for n, t in zip(deep, chosen, strict=True)):
            before: Tile | None = None
            for i, tile in zip(laid, chosen, strict=True):
                before = tile if tile.medium is not None else before
                if before is not None:
                    out[i] = _region(before if tile.medium is None else tile, media, empty=tile.medium is None)
            return out
    if steps:
        return unknown
    if len(laid) == 2 * len(groups) and all(len(g) > 1 for g in groups):
        pairs = [
            _joined(spans[a], spans[b], group, media, whole_last)
            for a, b, group in zip(laid[::2], laid[1::2], groups, strict=True)
        ]
        for i, region in zip(laid, [r for pair in pairs for r in pair], strict=True):
            out[i] = region
        return out
    whole = laid if len(laid) == len(groups) else [i for i, s in enumerate(spans) if s.grid is None and len(s) > 1]
    if not laid and len(whole) == len(shown) > len(groups):
        for i, tile in zip(whole, shown, strict=True):
            out[i] = _region(tile, media)
    elif len(whole) == len(groups):
        each = len(found) // len(groups) if len(found) % len(groups) == 0 else 0
        for n, (i, group) in enumerate(zip(whole, groups, strict=True)):
            mine = found[n * each : (n + 1) * each] if spans[i].grid == (1, 1) else ()
            out[i] = _together(spans[i], group, media, [t.box or EMPTY for t in mine])
    return out


def _region(tile: Tile, media: Sequence[Original], *, box: Box | None = None, empty: bool = False,
            frames: tuple[tuple[int, ...], ...] | None = None, tiles: Sequence[Box] = ()) -> Region:  # fmt: skip
    medium = tile.medium or 0
    own = media[medium]
    width, height = own.size

    def pixels(part: Box) -> Box:
        return part[0] * width, part[1] * height, part[2] * width, part[3] * height

    fractions = EMPTY if empty else box or tile.box or EMPTY
    source = medium - sum(not m.frames for m in media) if own.frames else medium
    shown = tile.steps if frames is None else frames
    return Region(source, own.size, pixels(fractions), shown, tuple(map(pixels, tiles)))


def _boxes(group: Sequence[Tile]) -> list[Box]:
    return [t.box for t in group if t.box is not None]


def _joined(
    one: Span, two: Span, group: Sequence[Tile], media: Sequence[Original], whole_last: bool
) -> list[Region | None]:
    """Return the regions of an image's overview and of its tiles joined into one grid, without padding at the edges."""
    base, tiled = (two, one) if whole_last else (one, two)
    first, rest = group[0], _boxes(group[1:])
    across, down = geometry.lines(rest, 0), geometry.lines(rest, 1)
    whole, joined = _region(first, media), None
    if across * down == len(rest):
        canvas, cells = geometry.union(rest), (down * base.cells[0], across * base.cells[1])
        if whole_last:
            kept = min(cells[0], tiled.cells[0]), min(cells[1], tiled.cells[1])
            box = geometry.cornered(canvas, cells, kept)
        else:
            box, kept = geometry.unpadded(canvas, cells, media[first.medium or 0].size)
        shrunk = tiled.cells[0] < kept[0] and tiled.cells[1] < kept[1]  # LLaVA-OneVision, of what would be too many
        joined = _region(first, media, box=box) if tiled.cells == kept or shrunk else None
    return [joined, whole] if whole_last else [whole, joined]


def _together(span: Span, group: Sequence[Tile], media: Sequence[Original], every: Sequence[Box]) -> Region | None:
    """Return the region of one span that covers all tiles of an original without a tile grid; ``every``: all tiles with
    empty ones, for cross-attention states."""
    boxes = _boxes(group)
    canvas = geometry.union(boxes)
    if len(boxes) == 1 or span.grid is None or span.grid == (1, 1):
        return _region(group[0], media, box=canvas, tiles=every or (boxes if len(boxes) > 1 else ()))
    return None


def timed(spans: tuple[Span, ...], durations: Sequence[float]) -> tuple[Span, ...]:
    """Return the spans, with the intervals of audio spans set if the duration of their positions is known."""
    sounds = [s for s in spans if s.modality == "audio"]
    each = [s.seconds for s in sounds if s.seconds is not None]
    if not sounds or len(each) != len(sounds):
        return spans
    places = geometry.windows([len(s) for s in sounds], each, durations)
    if places is None:
        return spans
    begins = {s.start: Interval(i, start, durations[i]) for s, (i, start) in zip(sounds, places, strict=True)}
    return tuple(replace(s, interval=begins[s.start]) if s.modality == "audio" else s for s in spans)
