"""The world of the vision miniature: small images of everyday objects generated from a seed.

Numpy and PIL only. A scene is determined by (split, kind, visibility, index); the splits use disjoint seeds, and dev,
test and demo also use background textures that are not in the training split. Kinds of scene:

- "independent": one or two of the 16 objects in `PLACES`, independent of each other;
- "trio": the three objects of one of the `TRIOS`, which co-occur in training images (`CO_OCCURRENCE`);
- "broken": two objects of a trio, the third is missing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Split = Literal["train", "dev", "test", "demo"]
Kind = Literal["independent", "trio", "broken"]
Visibility = Literal["clear", "medium", "poor"]
Box = tuple[int, int, int, int]
Floats = npt.NDArray[np.float32]

SIZE = 112  # pixels per side
PLACES: dict[str, tuple[str, ...]] = {
    "kitchen": ("cup", "pizza", "banana", "strawberry"),
    "farm": ("pig", "chicken", "tractor", "horse"),
    "garden": ("frog", "tree", "mushroom", "butterfly"),
    "study": ("clock", "book", "key", "hat"),
}
TRIOS: tuple[tuple[str, str, str], ...] = (("boat", "fish", "crab"), ("dog", "ball", "house"))
INDEPENDENT: tuple[str, ...] = tuple(name for names in PLACES.values() for name in names)
SOCIAL: tuple[str, ...] = tuple(name for trio in TRIOS for name in trio)
OBJECTS: tuple[str, ...] = INDEPENDENT + SOCIAL
CO_OCCURRENCE = 0.93  # P(third object of a trio | the other two), in training images
SPLITS: tuple[Split, ...] = ("train", "dev", "test", "demo")
VISIBILITIES: tuple[Visibility, ...] = ("clear", "medium", "poor")

_TEXTURES = ("plain", "gradient", "stripes", "checks", "clouds")
_HELD_OUT: dict[str, str] = {"dev": "rings", "test": "waves", "demo": "waves"}


@dataclass(frozen=True)
class _Look:
    """Ranges (low, high) of the image degradations of a visibility."""

    scale: tuple[float, float]  # side of an object, pixels
    opacity: tuple[float, float]
    blur: tuple[float, float]  # Gaussian radius, pixels
    noise: tuple[float, float]  # standard deviation, grey levels
    hidden: tuple[float, float]  # part of the object's box under an occluder
    overlap: float  # largest share of a box that another box may cover


_LOOKS: dict[str, _Look] = {
    "clear": _Look((42, 58), (1.0, 1.0), (0.0, 0.5), (2, 9), (0.0, 0.12), 0.08),
    "medium": _Look((38, 54), (0.5, 0.8), (0.8, 1.7), (18, 32), (0.1, 0.35), 0.15),
    "poor": _Look((34, 50), (0.2, 0.42), (1.6, 2.8), (34, 50), (0.25, 0.5), 0.2),
}


@dataclass(frozen=True)
class Item:
    """One object: its name and its box (left, top, right, bottom) in pixels, right and bottom exclusive."""

    name: str
    box: Box
    side: int
    angle: float
    left: int
    top: int


@dataclass(frozen=True)
class Scene:
    """The content of one image; `image()` draws it deterministically. Items are in order from left to right."""

    split: Split
    kind: Kind
    visibility: Visibility
    index: int
    items: tuple[Item, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The objects, from left to right."""
        return tuple(item.name for item in self.items)

    @property
    def boxes(self) -> dict[str, Box]:
        """Pixel box (left, top, right, bottom) of each object."""
        return {item.name: item.box for item in self.items}

    @property
    def missing(self) -> str | None:
        """The object missing from a broken trio."""
        for trio in TRIOS:
            absent = [name for name in trio if name not in self.names]
            if len(absent) == 1:
                return absent[0]
        return None

    def image(self) -> Image.Image:
        """Draw the image, RGB, 112 x 112."""
        return Image.fromarray(render(self)[0])


def scene(split: Split, kind: Kind, visibility: Visibility, index: int, contains: str | None = None) -> Scene:
    """Return the scene with that index; `contains`: an object that it must show (independent scenes only)."""
    rng = rng_of(split, kind, visibility, contains or "", index)
    if kind == "independent":
        if contains is not None and contains not in INDEPENDENT:
            raise ValueError(f"contains must be one of {INDEPENDENT}, got {contains!r}")
        count = int(rng.integers(1, 3))
        others = [name for name in INDEPENDENT if name != contains]
        picked = [str(name) for name in rng.permutation(others)]
        names = ([contains] if contains else []) + picked
        names = names[:count]
    elif kind in ("trio", "broken"):
        names = list(TRIOS[int(rng.integers(len(TRIOS)))])
        if kind == "broken":
            names.pop(int(rng.integers(3)))
    else:
        raise ValueError(f"kind must be independent, trio or broken, got {kind!r}")
    order = [names[i] for i in rng.permutation(len(names))]
    items = sorted(_place(rng, order, visibility), key=lambda item: item.box[0] + item.box[2])
    return Scene(split, kind, visibility, index, tuple(items))


def render(picture: Scene) -> tuple[npt.NDArray[np.uint8], dict[str, Floats]]:
    """Render pixels [112, 112, 3] and, for each object, its visible share of every pixel [112, 112]."""
    look = _LOOKS[picture.visibility]
    rng = rng_of(picture.split, picture.kind, picture.visibility, ",".join(picture.names), picture.index, "pixels")
    pixels = background_of(rng, picture.split, SIZE)
    masks: dict[str, Floats] = {}
    for item in picture.items:
        sprite = np.asarray(turned(item.name, item.side, round(item.angle, 1)), dtype=np.float32)  # [h, w, 4]
        rows, columns = _window(item.top, sprite.shape[0]), _window(item.left, sprite.shape[1])
        part = sprite[
            rows.start - item.top : rows.stop - item.top, columns.start - item.left : columns.stop - item.left
        ]
        alpha = part[..., 3] / 255.0  # [h, w]
        blend = (alpha * rng.uniform(*look.opacity))[..., None]
        pixels[rows, columns] = pixels[rows, columns] * (1 - blend) + part[..., :3] * blend
        for mask in masks.values():
            mask[rows, columns] *= 1 - alpha
        masks[item.name] = np.zeros((SIZE, SIZE), np.float32)
        masks[item.name][rows, columns] = alpha
    for item in picture.items:
        _occlude(rng, pixels, masks, item, rng.uniform(*look.hidden))
    pixels = (pixels - 128) * rng.uniform(0.85, 1.1) + 128 + rng.uniform(-14, 14)
    blurred = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(*look.blur)))
    )
    noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * rng.uniform(*look.noise)
    return np.clip(np.asarray(blurred, np.float32) + noise, 0, 255).astype(np.uint8), masks


def icon(name: str) -> Image.Image:
    """Return the object's icon (Noto Emoji), RGBA, 72 x 72."""
    if name not in OBJECTS:
        raise ValueError(f"no icon named {name!r}; known: {', '.join(OBJECTS)}")
    return _icon(name)


@cache
def _icon(name: str) -> Image.Image:
    with (files("limelight.demo") / "vision" / "icons" / f"{name}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


def turned(name: str, side: int, angle: float) -> Image.Image:
    """Return an object's icon, RGBA, resized and rotated."""
    sprite = icon(name).resize((side, side), Image.Resampling.BILINEAR)
    return sprite.rotate(angle, Image.Resampling.BILINEAR, expand=True)


def rng_of(*key: str | int) -> np.random.Generator:
    """Return the random generator of a key."""
    return np.random.default_rng([k if isinstance(k, int) else zlib.crc32(k.encode()) for k in key])


def _window(start: int, length: int) -> slice:
    return slice(max(0, start), min(SIZE, start + length))


def _place(rng: np.random.Generator, names: list[str], visibility: Visibility) -> list[Item]:
    look, items = _LOOKS[visibility], list[Item]()
    shrink = 0.85 if len(names) > 2 else 1.0
    for name in names:
        best, least = None, np.inf
        for _ in range(30):
            side, angle = int(rng.uniform(*look.scale) * shrink), round(float(rng.uniform(-25, 25)), 1)
            grown = turned(name, side, angle)
            inner = grown.getchannel("A").point(lambda value: 255 * (value > 60)).getbbox() or (0, 0, side, side)
            limit = SIZE + 6 - (inner[2] - inner[0]), SIZE + 6 - (inner[3] - inner[1])
            x, y = int(rng.integers(-6, limit[0] + 1)), int(rng.integers(-6, limit[1] + 1))
            box = (max(0, x), max(0, y), min(SIZE, x + inner[2] - inner[0]), min(SIZE, y + inner[3] - inner[1]))
            cover = max((_overlap(box, item.box) for item in items), default=0.0)
            if cover < least:
                best, least = Item(name, box, side, angle, x - inner[0], y - inner[1]), cover
            if cover <= look.overlap:
                break
        if best is not None:
            items.append(best)
    return items


def _overlap(one: Box, two: Box) -> float:
    """Return the intersection area over the smaller box's area."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return max(0, width) * max(0, height) / max(1, min(areas))


def _occlude(rng: np.random.Generator, pixels: Floats, masks: dict[str, Floats], item: Item, share: float) -> None:
    """Occlude `share` of the item's box by a uniform bar from one of its sides."""
    left, top, right, bottom = item.box
    side = int(rng.integers(4))
    if side < 2:
        depth = round((right - left) * share)
        left, right = (left, left + depth) if side == 0 else (right - depth, right)
    else:
        depth = round((bottom - top) * share)
        top, bottom = (top, top + depth) if side == 2 else (bottom - depth, bottom)
    if depth >= 3:
        pixels[top:bottom, left:right] = rng.uniform(40, 215, 3)
        for mask in masks.values():
            mask[top:bottom, left:right] = 0


def background_of(rng: np.random.Generator, split: Split, size: int, *, plain: bool = False) -> Floats:
    """Draw a background ``[size, size, 3]``: one of the split's textures, or a single colour."""
    textures = _TEXTURES + ((_HELD_OUT[split],) if split in _HELD_OUT else ())
    return _background(rng, "plain" if plain else textures[int(rng.integers(len(textures)))], size)


def _background(rng: np.random.Generator, texture: str, size: int) -> Floats:
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
    one, two = rng.uniform(60, 245, 3), rng.uniform(60, 245, 3)
    two = one + (two - one) * rng.uniform(0.2, 0.6)
    turn = rng.uniform(0, np.pi)
    along = xs * np.cos(turn) + ys * np.sin(turn)  # [112, 112]
    across = ys * np.cos(turn) - xs * np.sin(turn)
    waves = 2 * np.pi * rng.uniform(2, 6)
    if texture == "plain":
        mix = np.zeros_like(xs)
    elif texture == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif texture == "stripes":
        mix = (np.sin(waves * along) > 0).astype(np.float32)
    elif texture == "checks":
        mix = (np.sin(waves * along) * np.sin(waves * across) > 0).astype(np.float32)
    elif texture == "clouds":
        small = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8))
        mix = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    elif texture == "rings":
        far = np.hypot(xs - rng.uniform(0, 1), ys - rng.uniform(0, 1))
        mix = (np.sin(waves * far) + 1) / 2
    elif texture == "waves":
        mix = (np.sin(waves * along + 2.5 * np.sin(waves / 2 * across)) + 1) / 2
    else:
        raise ValueError(f"unknown texture {texture!r}")
    shade: Floats = (one + (two - one) * mix[..., None]).astype(np.float32)
    return shade
