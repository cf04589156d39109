"""The world of the video miniature: short films in which everyday objects appear, move and leave, generated from a seed.

Numpy and PIL only. A film is determined by (split, visibility, index); the splits use disjoint seeds, and dev, test and
demo also use background textures that are not in the training split (as in the vision miniature's scenes). Eight frames
at two a second; two or three of the 16 independent objects; every appearance and every departure falls on a frame of its
own, so that their order is never in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from limelight.demo.scenes import INDEPENDENT, Floats, Split, Visibility, background_of, rng_of, turned
from limelight.types import Clip

FRAMES = 8
RATE = 2.0  # frames per second
SIZE = 48  # pixels per side
HALF = FRAMES // 2  # the first frame of the second half
NAMES = INDEPENDENT
LAST_START = FRAMES - 2  # an object stays for two frames at least
# Chance of each first frame: both halves are equally likely.
_STARTS = tuple(0.5 / HALF if t < HALF else 0.5 / (LAST_START + 1 - HALF) for t in range(LAST_START + 1))


@dataclass(frozen=True)
class _Look:
    """Ranges (low, high) of the degradations of a visibility."""

    side: tuple[float, float]  # of an object, pixels of a frame of 48
    opacity: tuple[float, float]
    blur: tuple[float, float]  # Gaussian radius, pixels
    noise: tuple[float, float]  # standard deviation, grey levels
    overlap: float  # largest share of an object that another may cover while both are there


_LOOKS: dict[Visibility, _Look] = {
    "clear": _Look((18, 24), (1.0, 1.0), (0.0, 0.3), (2, 8), 0.1),
    "medium": _Look((17, 23), (0.55, 0.8), (0.3, 0.8), (14, 24), 0.2),
    "poor": _Look((16, 22), (0.25, 0.45), (0.7, 1.2), (22, 34), 0.25),
}


@dataclass(frozen=True)
class Appearance:
    """One object of a film: visible in frames ``start`` to ``stop`` (exclusive), its centre moving evenly ``path[0]`` to
    ``path[1]`` (x, y, in pixels of a frame of 48)."""

    name: str
    start: int
    stop: int
    side: int
    angle: float
    path: tuple[tuple[float, float], tuple[float, float]]

    @property
    def leaves(self) -> bool:
        """Whether it leaves before the film ends."""
        return self.stop < FRAMES

    @property
    def frames(self) -> range:
        """The frames in which it is visible."""
        return range(self.start, self.stop)

    @property
    def half(self) -> str:
        """The half of the film in which it appears: "first" or "second"."""
        return "first" if self.start < HALF else "second"

    def centre(self, frame: int) -> tuple[float, float]:
        """The centre (x, y) in a frame."""
        share = (frame - self.start) / max(1, self.stop - self.start - 1)
        (x, y), (to_x, to_y) = self.path
        return x + share * (to_x - x), y + share * (to_y - y)


@dataclass(frozen=True)
class Film:
    """The content of one film, in order of appearance; `pixels()` draws it deterministically."""

    split: Split
    visibility: Visibility
    index: int
    appearances: tuple[Appearance, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The objects in order of appearance."""
        return tuple(a.name for a in self.appearances)

    @property
    def events(self) -> tuple[tuple[str, str], ...]:
        """What happens, in order: (object, "appears" or "leaves")."""
        found = [(a.start, a.name, "appears") for a in self.appearances]
        found += [(a.stop, a.name, "leaves") for a in self.appearances if a.leaves]
        return tuple((name, what) for _, name, what in sorted(found))

    def of(self, name: str) -> Appearance:
        """The appearance of an object of this film."""
        return next(a for a in self.appearances if a.name == name)

    def pixels(self, size: int = SIZE) -> npt.NDArray[np.uint8]:
        """Draw the frames [8, size, size, 3]."""
        return render(self, size)[0]

    def clip(self, size: int = SIZE) -> Clip:
        """Draw the film as a clip of images with their times in seconds."""
        frames = tuple(Image.fromarray(frame) for frame in self.pixels(size))
        return Clip(frames, tuple(i / RATE for i in range(FRAMES)), RATE, FRAMES / RATE)


def film(split: Split, visibility: Visibility, index: int) -> Film:
    """Return the film with that index."""
    rng = rng_of(split, "film", visibility, index)
    count = 2 if rng.random() < 0.65 else 3
    names = [str(name) for name in rng.permutation(NAMES)[:count]]
    while True:
        starts = sorted(int(t) for t in rng.choice(LAST_START + 1, count, replace=False, p=_STARTS))
        stops = [min(FRAMES, start + int(rng.integers(2, 6))) for start in starts]
        changes = [*starts, *(stop for stop in stops if stop < FRAMES)]
        if len(set(changes)) == len(changes):
            break
    look, placed = _LOOKS[visibility], list[Appearance]()
    for name, start, stop in zip(names, starts, stops, strict=True):
        placed.append(place(rng, name, start, stop, look.side, look.overlap, placed))
    return Film(split, visibility, index, tuple(placed))


def place(
    rng: np.random.Generator, name: str, start: int, stop: int, sides: tuple[float, float], overlap: float,
    others: list[Appearance],
) -> Appearance:  # fmt: skip
    """A path for an object that crosses those of the others as little as 20 tries allow.

    Args:
        sides: range of its side, pixels of a frame of 48. overlap: how much of an object another may cover.
    """
    best, least = None, np.inf
    for _ in range(20):
        side, angle = int(rng.uniform(*sides)), round(float(rng.uniform(-20, 20)), 1)
        low, high = side / 2 - 1, SIZE - side / 2 + 1
        here, there = rng.uniform(low, high, 2), rng.uniform(low, high, 2)
        there = here + np.clip(there - here, -18, 18)
        path = ((float(here[0]), float(here[1])), (float(there[0]), float(there[1])))
        one = Appearance(name, start, stop, side, angle, path)
        cover = max((_cover(one, other) for other in others), default=0.0)
        if best is None or cover < least:
            best, least = one, cover
        if cover <= overlap:
            break
    if best is None:
        raise ValueError(f"no place for {name}")
    return best


def _cover(one: Appearance, two: Appearance) -> float:
    """The largest share of the smaller object's square that the other's covers, over the frames that show both."""
    shares = [0.0]
    for frame in set(one.frames) & set(two.frames):
        (x, y), (u, v) = one.centre(frame), two.centre(frame)
        reach, smaller = (one.side + two.side) / 2, min(one.side, two.side)
        across, down = (min(smaller, max(0.0, reach - abs(d))) for d in (x - u, y - v))
        shares.append(across * down / smaller**2)
    return max(shares)


def render(one: Film, size: int = SIZE) -> tuple[npt.NDArray[np.uint8], dict[str, Floats]]:
    """Render frames [8, size, size, 3] and, for each object, its visible share of every pixel [8, size, size]."""
    look, scale = _LOOKS[one.visibility], size / SIZE
    rng = rng_of(one.split, one.visibility, ",".join(one.names), one.index, "film pixels")
    ground = background_of(rng, one.split, size)
    opacity = {a.name: rng.uniform(*look.opacity) for a in one.appearances}
    contrast, light, blur, noise = (rng.uniform(*r) for r in ((0.85, 1.1), (-14.0, 14.0), look.blur, look.noise))
    sprites = {
        a.name: np.asarray(turned(a.name, round(a.side * scale), a.angle), np.float32) for a in one.appearances
    }  # [h, w, 4]
    masks = {a.name: np.zeros((FRAMES, size, size), np.float32) for a in one.appearances}
    out = np.empty((FRAMES, size, size, 3), np.uint8)
    for frame in range(FRAMES):
        pixels = ground.copy()
        for a in one.appearances:
            if frame not in a.frames:
                continue
            x, y = a.centre(frame)
            rows, columns, alpha = paste(pixels, sprites[a.name], (x * scale, y * scale), opacity[a.name])
            for mask in masks.values():
                mask[frame, rows, columns] *= 1 - alpha
            masks[a.name][frame, rows, columns] = alpha
        pixels = (pixels - 128) * contrast + 128 + light
        drawn = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        drawn = drawn.filter(ImageFilter.GaussianBlur(float(blur * scale))) if blur > 0.05 else drawn
        grain = rng.standard_normal((size, size, 3), dtype=np.float32) * noise
        out[frame] = np.clip(np.asarray(drawn, np.float32) + grain, 0, 255).astype(np.uint8)
    return out, masks


def paste(
    pixels: Floats, sprite: Floats, centre: tuple[float, float], opacity: float = 1.0
) -> tuple[slice, slice, Floats]:
    """Draw a sprite [h, w, 4] around a point (x, y) of pixels [height, width, 3], in place; return the rows and columns that it
    covers, and its share of each of their pixels."""
    height, width = pixels.shape[:2]
    left, top = round(centre[0] - sprite.shape[1] / 2), round(centre[1] - sprite.shape[0] / 2)
    rows, columns = _window(top, sprite.shape[0], height), _window(left, sprite.shape[1], width)
    part = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    alpha = part[..., 3] / 255.0  # [h, w]
    blend = (alpha * opacity)[..., None]
    pixels[rows, columns] = pixels[rows, columns] * (1 - blend) + part[..., :3] * blend
    return rows, columns, alpha


def _window(start: int, length: int, size: int) -> slice:
    return slice(max(0, start), min(size, start + length))
