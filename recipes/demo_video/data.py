"""Training data: films rendered once into a cache, with what every patch and every cell of every frame shows."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from limelight.demo.films import FRAMES, NAMES, SIZE, Film, film, render
from limelight.demo.scenes import Split, Visibility

PATCH = 8
GRID = SIZE // PATCH  # 6 x 6 patches a frame
CELLS = (GRID // 2) ** 2  # 3 x 3 pooled tokens a frame
TOKENS = FRAMES * CELLS + 1  # 73 video tokens: the last is the newline
VISIBILITY_SHARE: dict[Visibility, float] = {"clear": 0.45, "medium": 0.3, "poor": 0.25}
PART = 500  # films rendered between two saves


def training_film(index: int, split: Split = "train") -> Film:
    """The index-th film of the training mixture (of the same mixture in another split, for validation)."""
    rng = np.random.default_rng([index, 22])
    names, shares = zip(*VISIBILITY_SHARE.items(), strict=True)
    visibility: Visibility = names[int(rng.choice(len(names), p=shares))]
    return film(split, visibility, index)


def coverage(masks: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.uint8]:
    """Share of every patch that each object covers: [frames, 36, objects], 0..255."""
    out = np.zeros((FRAMES, GRID * GRID, len(NAMES)), np.uint8)
    for name, mask in masks.items():
        blocks = mask.reshape(FRAMES, GRID, PATCH, GRID, PATCH).mean((2, 4))  # [frames, 6, 6]
        out[..., NAMES.index(name)] = np.round(blocks.reshape(FRAMES, -1) * 255)
    return out


def pooled(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Share of every pooled cell that each object covers: [..., frames, 36, objects] -> [..., frames * 9, objects]."""
    *lead, frames, _, objects = patches.shape
    half = GRID // 2
    blocks = patches.reshape(*lead, frames, half, 2, half, 2, objects).mean((-4, -2))  # [..., frames, 3, 3, objects]
    return np.round(blocks).astype(np.uint8).reshape(*lead, frames * half * half, objects)


@dataclass
class Films:
    """Rendered films: pixels [n, 8, 48, 48, 3] uint8, patches [n, 8, 36, objects] uint8, films [n]."""

    pixels: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.uint8]
    films: list[Film]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each frame shows each object: [n, 8, objects]."""
        out = np.zeros((len(self.films), FRAMES, len(NAMES)), bool)
        for number, one in enumerate(self.films):
            for a in one.appearances:
                out[number, a.start : a.stop, NAMES.index(a.name)] = True
        return out


def films(folder: Path, split: Split, count: int) -> Films:
    """The first `count` films of a split's mixture, from the cache or rendered into it; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"pixels": (FRAMES, SIZE, SIZE, 3), "patches": (FRAMES, GRID * GRID, len(NAMES))}
    done_file = folder / f"{split}-{count}-done.txt"
    done = int(done_file.read_text()) if done_file.exists() else 0
    mode = "r+" if done_file.exists() else "w+"
    held = {
        name: np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            folder / f"{split}-{count}-{name}.npy",
            mode="r" if done == count else mode,
            dtype=None if mode == "r+" else np.uint8,
            shape=None if mode == "r+" else (count, *shape),
        )
        for name, shape in shapes.items()
    }
    made, began = [training_film(index, split) for index in range(count)], time.time()
    for start, stop in itertools.pairwise([*range(done, count, PART), count]):
        for index in range(start, stop):
            frames, masks = render(made[index])
            held["pixels"][index], held["patches"][index] = frames, coverage(masks)
        done_file.write_text(str(stop))
        left = (count - stop) * (time.time() - began) / (stop - done)
        print(f"render {split} {stop}/{count}  {left:.0f} s left", flush=True)
    return Films(held["pixels"], held["patches"], made)
