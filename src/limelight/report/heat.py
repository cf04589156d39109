"""The colour map of relevance: red supports the word, blue is against it; a map of little relevance looks faint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from limelight.types import Box, Relevance

Floats = npt.NDArray[np.float32]
SUPPORTS, AGAINST = (
    (196, 30, 42),
    (25, 91, 184),
)  # red, blue: distinguishable with all common colour vision deficiencies
OPACITY = 0.78  # for the largest score
UNSEEN = (20, 20, 20, 150)  # overlay for parts the model did not see
STRONG, MODERATE, WEAK = 0.25, 0.08, 0.02  # shares of the relevance from which the media's part has that name


def array(values: Any) -> Floats:
    """Convert a tensor or array to float32 numpy."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float32)


def scores(relevance: Relevance) -> Floats:
    """Return scores ``[T]`` with the sinks set to zero."""
    out = array(relevance.scores).copy()
    out[list(relevance.sinks)] = 0.0
    return out


def limit(values: Floats, quantile: float = 0.995) -> float:
    """Return the score of full colour: a high quantile of ``|R|``, so that one outlier does not hide the rest."""
    if not values.size or not np.isfinite(values).any():
        return 1.0
    top = float(np.quantile(np.abs(values), quantile))
    return top or float(np.abs(values).max()) or 1.0


def media_share(relevance: Relevance) -> float:
    """Return the part of ``sum |R|`` on image, audio and video positions, in [0, 1]."""
    return 1.0 - relevance.share("text") if any(s.modality != "text" for s in relevance.spans) else 0.0


def named(share: float) -> str:
    """Return the media's share of a word's relevance in words: strong, moderate, weak or very weak."""
    return next(
        (name for name, least in (("strong", STRONG), ("moderate", MODERATE), ("weak", WEAK)) if share >= least),
        "very weak",
    )


def faintness(share: float) -> float:
    """Return the factor on a map's opacity: 1 from a strong share on, and less by the square root below.

    Every map is scaled to its own largest score; without the factor a word that owes 1 % to the image would look like one
    that owes it everything.
    """
    return float(np.sqrt(np.clip(share / STRONG, 0.0, 1.0)))


def smooth(grid: Floats, size: tuple[int, int], part: Box = (0.0, 0.0, 1.0, 1.0)) -> Floats:
    """Resize a grid ``[rows, columns]``, or a part of it (fractions), to ``size`` (width, height) by bicubic interpolation,
    clipped to its own range."""
    rows, columns = grid.shape
    box = (part[0] * columns, part[1] * rows, part[2] * columns, part[3] * rows)
    drawn = Image.fromarray(grid.astype(np.float32)).resize(size, Image.Resampling.BICUBIC, box=box)
    return np.clip(np.asarray(drawn, dtype=np.float32), grid.min(), grid.max())


def rgba(values: Floats, full: float, strength: float = 1.0) -> npt.NDArray[np.uint8]:
    """Return colours ``[..., 4]``: hue shows the sign, opacity the magnitude; zero is transparent.

    ``strength``: a factor on the opacity (:func:`faintness`).
    """
    part = strength * np.clip(np.abs(values) / full, 0, 1)[..., None]
    colour = np.where(values[..., None] >= 0, np.array(SUPPORTS), np.array(AGAINST))
    return np.concatenate([np.broadcast_to(colour, (*values.shape, 3)), 255 * OPACITY * part], -1).astype(np.uint8)


def blend(picture: Image.Image, parts: Sequence[tuple[Floats, Box]], full: float, strength: float = 1.0) -> Image.Image:
    """Draw grids ``[rows, columns]`` over an image, each in its box (in fractions of width and height). Parts without a grid
    were not seen by the model and are darkened. A box may extend beyond the image, into padding."""
    base = Image.blend(picture.convert("RGB"), picture.convert("L").convert("RGB"), 0.8).convert("RGBA")
    layer = Image.new("RGBA", base.size, UNSEEN)
    for grid, box in parts:
        wide, high = box[2] - box[0], box[3] - box[1]
        seen = max(box[0], 0.0), max(box[1], 0.0), min(box[2], 1.0), min(box[3], 1.0)
        left, top, right, bottom = (round(f * n) for f, n in zip(seen, picture.size * 2, strict=True))
        if right <= left or bottom <= top:
            continue
        part = (
            (seen[0] - box[0]) / wide,
            (seen[1] - box[1]) / high,
            (seen[2] - box[0]) / wide,
            (seen[3] - box[1]) / high,
        )
        layer.paste(
            Image.fromarray(rgba(smooth(grid, (right - left, bottom - top), part), full, strength)), (left, top)
        )
    return Image.alpha_composite(base, layer).convert("RGB")


def colour_bar(axes: Any, full: float, values: Floats, strength: float = 1.0) -> None:
    """Draw a vertical colour bar into ``axes``, labelled in words and in units of the logit, marked as clipped where
    ``values`` go well beyond it."""
    clipped = float(np.abs(values).max(initial=0.0)) > 1.2 * full
    ramp = np.linspace(-full, full, 128, dtype=np.float32)[:, None]
    white = np.full((128, 1, 3), 255.0)
    colours = rgba(ramp, full, strength).astype(np.float32)
    opacity = colours[..., 3:] / 255
    axes.imshow(
        (colours[..., :3] * opacity + white * (1 - opacity)).astype(np.uint8),
        aspect="auto", origin="lower", extent=(0, 1, -full, full),
    )  # fmt: skip
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    marks = ((-full, "strongly\nagainst"), (-full / 2, ""), (0.0, "no effect"), (full / 2, ""), (full, "strongly\nfor"))
    axes.set_yticks([v for v, _ in marks], [f"{v:+.2g}  {name}" if v else f"0  {name}" for v, name in marks])
    axes.tick_params(labelsize=7, length=2)
    axes.set_ylabel("relevance per cell (logit)" + (", clipped" if clipped else ""), fontsize=7)
