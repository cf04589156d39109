"""Large pictures of the vision miniature's world, with objects that are small in them. Numpy and PIL only.

The miniature sees 112 x 112 pixels of every picture; a canvas has several times as many per side, with objects of their usual
size, so that they are small once the picture is scaled down and in full detail in a crop. Kinds of canvas:

- "plain", "texture": one object on a ground of one colour, or on a texture;
- "2x2", "3x3", "4x4": one object in every cell of a grid, the one that is asked about among them;
- "relation": two objects side by side; the question is which one is on the left.

A canvas is determined by (split, kind, sides, index); the splits use disjoint seeds, and textures as in
:mod:`limelight.demo.scenes`. Nothing is trained on canvases: dev chooses settings, test measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from limelight.demo import language
from limelight.demo.questions import check_cell
from limelight.demo.scenes import INDEPENDENT, SIZE, Box, Split, background_of, rng_of, turned

Ground = Literal["plain", "texture", "2x2", "3x3", "4x4", "relation"]
KINDS: tuple[Ground, ...] = ("plain", "texture", "2x2", "3x3", "4x4", "relation")
SIDES: dict[Ground, tuple[int, ...]] = {  # canvas sides, in multiples of what the miniature sees
    "plain": (2, 3, 4), "texture": (2, 3, 4), "2x2": (2,), "3x3": (3,), "4x4": (4,), "relation": (3,),
}  # fmt: skip
CELLS = tuple(f"{kind}/{side}" for kind in KINDS for side in SIDES[kind])
SCALE = (42, 58)  # side of an object, pixels, as in clear scenes
MARGIN = 4  # pixels between an object and the edge of its cell


@dataclass(frozen=True)
class Placed:
    """An object on a canvas: its name and its box (left, top, right, bottom) in pixels."""

    name: str
    box: Box
    side: int
    angle: float
    corner: tuple[int, int]


@dataclass(frozen=True)
class Canvas:
    """The content of one large picture; :meth:`image` draws it deterministically."""

    split: Split
    kind: Ground
    side: int
    index: int
    items: tuple[Placed, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)

    def box_of(self, name: str) -> tuple[float, float, float, float] | None:
        """The box of an object, in fractions of the picture; None where it is absent."""
        found = next((item.box for item in self.items if item.name == name), None)
        return None if found is None else tuple(x / (self.side * SIZE) for x in found)  # type: ignore[return-value]

    def image(self) -> Image.Image:
        """Draw the picture, RGB, ``side * 112`` pixels per side."""
        size = self.side * SIZE
        rng = rng_of("canvas", self.split, self.kind, self.side, self.index, "pixels")
        pixels = background_of(rng, self.split, size, plain=self.kind == "plain")
        for item in self.items:
            sprite = np.asarray(turned(item.name, item.side, item.angle), dtype=np.float32)
            left, top = item.corner
            part = pixels[max(0, top) : top + sprite.shape[0], max(0, left) : left + sprite.shape[1]]
            sprite = sprite[max(0, -top) :, max(0, -left) :][: part.shape[0], : part.shape[1]]
            alpha = sprite[..., 3:] / 255.0
            part[:] = part * (1 - alpha) + sprite[..., :3] * alpha
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2, 9)
        drawn: npt.NDArray[np.uint8] = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        return Image.fromarray(drawn)


@dataclass(frozen=True)
class CanvasQuestion:
    """One question about a canvas.

    ``label`` is whether the object is there, for a relation whether ``object`` is left of ``other``; ``text`` the user turn.
    """

    id: str
    canvas: Canvas
    text: str
    label: bool
    cell: str
    object: str
    other: str = ""


def canvas(split: Split, kind: Ground, side: int, index: int, names: tuple[str, ...]) -> Canvas:
    """Return the canvas with that index, showing ``names``: one, one per cell, or two from left to right."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    rng = rng_of("canvas", split, kind, side, index)
    size = side * SIZE
    items = []
    if kind in ("plain", "texture"):
        cells = [(0, 0, size, size)]
    elif kind == "relation":
        cells = [(0, 0, size // 2, size), (size // 2, 0, size, size)]
    else:
        count, each = int(kind[0]), size // int(kind[0])
        cells = [(x * each, y * each, (x + 1) * each, (y + 1) * each) for y in range(count) for x in range(count)]
    if len(names) != len(cells):
        raise ValueError(f"a canvas of kind {kind} shows {len(cells)} objects, got {len(names)}")
    for name, (left, top, right, bottom) in zip(names, cells, strict=True):
        long, angle = int(rng.uniform(*SCALE)), round(float(rng.uniform(-25, 25)), 1)
        alpha = turned(name, long, angle).getchannel("A").point(lambda value: 255 * (value > 60))
        inner = alpha.getbbox() or (0, 0, long, long)
        wide, high = inner[2] - inner[0], inner[3] - inner[1]
        x = int(rng.integers(left + MARGIN, right - MARGIN - wide + 1))
        y = int(rng.integers(top + MARGIN, bottom - MARGIN - high + 1))
        items.append(Placed(name, (x, y, x + wide, y + high), long, angle, (x - inner[0], y - inner[1])))
    return Canvas(split, kind, side, index, tuple(items))


def canvas_questions(split: Split, cell: str, n: int = 1000, seed: int = 0) -> list[CanvasQuestion]:
    """Return the first n questions of a cell "<kind>/<side>"; half of the answers are yes.

    Raises ValueError for a cell that is not in `CELLS`, or a seed below 0.
    """
    check_cell(cell, CELLS, seed)
    kind: Ground = next(k for k in KINDS if k == cell.partition("/")[0])
    side = int(cell.partition("/")[2])
    return [_question(split, kind, side, cell, seed, number) for number in range(n)]


def _question(split: Split, kind: Ground, side: int, cell: str, seed: int, number: int) -> CanvasQuestion:
    rng = rng_of("canvas question", split, cell, seed, number)
    label = number % 2 == 0
    drawn = [str(name) for name in rng.permutation(INDEPENDENT)]
    count = {"plain": 1, "texture": 1, "relation": 2}.get(kind) or int(kind[0]) ** 2
    key, index = f"{split}/{cell}/{seed}/{number}", 1_000_000 * seed + number
    if kind == "relation":
        left, right = drawn[:2]
        asked, other = (left, right) if label else (right, left)
        return CanvasQuestion(
            key, canvas(split, kind, side, index, (left, right)), language.DESCRIBE, label, cell, asked, other
        )
    absent, present = drawn[0], drawn[1:]
    shown = [present[i % len(present)] for i in range(count)]  # 16 cells: one object occurs twice
    asked = shown[int(rng.integers(count))] if label else absent
    return CanvasQuestion(key, canvas(split, kind, side, index, tuple(shown)), language.ask(asked), label, cell, asked)
