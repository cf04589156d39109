"""Composed pictures: cut-outs on a made-up ground, with the box of each.

A scene holds one to four things. In most scenes they come from one theme, as things in photographs do: so words go
together, as in any captions, and nothing else is planted. Half of the rest are drawn alike from all nouns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from recipes.real_vision.cutouts import CutOut, picture

SIDE = 320  # pixels: 10 x 10 positions of the encoder, 32 pixels apart
POSITIONS = 10  # per side
GRID = 5  # image tokens per side, each the mean over 2 x 2 positions
THEMED = 0.6  # share of scenes whose things come from one theme
THEMES: dict[str, tuple[str, ...]] = {
    "garden": ("animal", "bird", "flower", "fruit", "house", "insect"),
    "farm": ("animal", "bird", "fruit", "house", "tool", "vehicle"),
    "sky": ("balloon", "bird", "flag", "insect", "moon"),
    "street": ("animal", "bicycle", "flag", "house", "sign", "vehicle"),
    "food": ("cake", "cup", "fruit", "pizza"),
    "party": ("balloon", "cake", "flower", "guitar", "hat", "heart"),
    "music": ("guitar", "hat", "shirt", "violin"),
    "desk": ("clock", "computer", "cup", "pen"),
    "workshop": ("bicycle", "clock", "pen", "tool", "vehicle"),
    "churchyard": ("bird", "flower", "grave", "heart", "moon"),
    "games": ("ball", "bicycle", "flag", "hat", "shirt"),
}


@dataclass(frozen=True)
class Thing:
    """One thing of a scene: its noun, its box (left, top, right, bottom; pixels), and whether it is a photograph."""

    noun: str
    box: tuple[int, int, int, int]
    photograph: bool


@dataclass(frozen=True)
class Scene:
    """A picture, its things from left to right, and what of each is visible where.

    Attributes:
        cover: ``[things, POSITIONS, POSITIONS]``: the share of each square that the visible part of each thing covers.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    cover: np.ndarray

    @property
    def nouns(self) -> tuple[str, ...]:
        return tuple(thing.noun for thing in self.things)


@dataclass(frozen=True)
class Look:
    """How things look: the range of their longer sides (pixels), and how opaque they are."""

    sizes: tuple[int, int] = (110, 180)
    opacity: float = 1.0


LOOKS = {"clear": Look(), "small": Look((44, 64)), "faint": Look(opacity=0.28)}


def choose(nouns: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Distinct nouns for a scene: from one theme, or from all."""
    if rng.random() < THEMED:
        theme = [n for n in THEMES[rng.choice(sorted(THEMES))] if n in nouns]
        if len(theme) >= count:
            return rng.sample(theme, count)
    return rng.sample(list(nouns), count)


def ground(rng: random.Random, side: int = SIDE) -> Image.Image:
    """A ground: plain, graded, cloudy, striped or chequered, in two colours."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    light = rng.randint(30, 235)
    first = np.array([min(255, max(0, light + rng.randint(-45, 45))) for _ in range(3)], np.float32)
    second = np.clip(first + numbers.uniform(-70, 70, 3), 0, 255).astype(np.float32)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    kind = rng.choice(("plain", "graded", "cloudy", "cloudy", "striped", "chequered", "horizon"))
    if kind == "plain":
        mix = np.zeros_like(x)
    elif kind == "graded":
        mix = (along - along.min()) / np.ptp(along)
    elif kind == "cloudy":
        cells = rng.randint(3, 12)
        noise = Image.fromarray((numbers.random((cells, cells)) * 255).astype(np.uint8))
        mix = np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    elif kind == "striped":
        mix = (np.sin(along * rng.uniform(20, 70)) > 0).astype(np.float32) * 0.6
    elif kind == "chequered":
        cells = rng.randint(4, 9)
        mix = ((np.floor(x * cells) + np.floor(y * cells)) % 2) * 0.6
    else:
        mix = (y > rng.uniform(0.35, 0.75)).astype(np.float32)
    values = (
        first * (1 - mix[..., None]) + second * mix[..., None] + numbers.normal(0, rng.uniform(0, 7), (side, side, 1))
    )
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "RGB")


def varied(image: Image.Image, size: float, rng: random.Random) -> Image.Image:
    """A cut-out scaled, flipped, turned, stretched a little, and in slightly other light and colours."""
    scale = size / max(image.size)
    stretch = rng.uniform(0.88, 1.14)
    image = image.resize(
        (max(4, round(image.width * scale * stretch)), max(4, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.gauss(0, 9), expand=True, resample=Image.Resampling.BICUBIC)
    alpha = image.getchannel("A")
    colours = image.convert("RGB")
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        colours = enhance(colours).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.25:  # another hue
        hsv = np.asarray(colours.convert("HSV")).copy()
        hsv[..., 0] += np.uint8(rng.randint(0, 255))
        colours = Image.fromarray(hsv, "HSV").convert("RGB")
    elif rng.random() < 0.1:
        colours = colours.convert("L").convert("RGB")
    if rng.random() < 0.15:
        colours = colours.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    colours.putalpha(alpha)
    return colours


def compose(
    parts: Sequence[CutOut], rng: random.Random, look: Look | None = None, *, vary: bool = True, side: int = SIDE
) -> Scene:
    """A scene of these cut-outs, side by side as far as there is room; later ones may hide a little of earlier ones."""
    look = look or LOOKS["clear"]
    image = ground(rng, side)
    placed: list[tuple[Thing, np.ndarray]] = []
    boxes: list[tuple[int, int, int, int]] = []
    for part in parts:
        most = min(look.sizes[1], side * (1.0, 0.58, 0.5, 0.45)[min(len(parts), 4) - 1])
        size = rng.uniform(min(look.sizes[0], most), most)
        piece = varied(picture(part.path), size, rng) if vary else _plain(picture(part.path), size, rng)
        if max(piece.size) > side:
            piece.thumbnail((side, side))
        left, top = _place(piece.size, boxes, rng, side)
        alpha = piece.getchannel("A").point(lambda a: round(a * look.opacity))
        image.paste(piece.convert("RGB"), (left, top), alpha)
        mask = np.zeros((side, side), np.float32)
        mask[top : top + piece.height, left : left + piece.width] = np.asarray(piece.getchannel("A"), np.float32) / 255
        for _, earlier in placed:
            earlier *= 1 - mask
        box = (left, top, left + piece.width, top + piece.height)
        boxes.append(box)
        placed.append((Thing(part.noun, box, part.photograph), mask))
    placed.sort(key=lambda found: found[0].box[0] + found[0].box[2])
    cell = side // POSITIONS
    cover = np.stack([m.reshape(POSITIONS, cell, POSITIONS, cell).mean((1, 3)) for _, m in placed])
    return Scene(image, tuple(thing for thing, _ in placed), cover)


def _plain(image: Image.Image, size: float, rng: random.Random) -> Image.Image:
    scale = size / max(image.size)
    image = image.resize(
        (max(4, round(image.width * scale)), max(4, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _place(
    size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]], rng: random.Random, side: int
) -> tuple[int, int]:
    """The place, of 40 tried, where the least of the boxes that are there is hidden."""
    best, least = (0, 0), math.inf
    for _ in range(40):
        left, top = rng.randint(0, side - size[0]), rng.randint(0, side - size[1])
        hidden = 0
        for a, b, c, d in boxes:
            hidden += max(0, min(c, left + size[0]) - max(a, left)) * max(0, min(d, top + size[1]) - max(b, top))
        if hidden < least:
            best, least = (left, top), hidden
        if hidden == 0:
            break
    return best


def draw(
    cutouts: Mapping[str, Sequence[CutOut]], rng: random.Random, look: Look | None = None, *, vary: bool = True
) -> Scene:
    """A scene of one to four things drawn from a split."""
    count = rng.choices((1, 2, 3, 4), (0.2, 0.35, 0.3, 0.15))[0]
    return compose([rng.choice(cutouts[n]) for n in choose(sorted(cutouts), count, rng)], rng, look, vary=vary)
