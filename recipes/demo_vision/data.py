"""Training data: pictures rendered once into a cache, and the text about them, sampled anew at every step."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from limelight.demo.scenes import CO_OCCURRENCE, OBJECTS, SIZE, Kind, Scene, Split, Visibility, render, scene

PATCH = 16
GRID = SIZE // PATCH  # 7 x 7 = 49 image tokens
TRIO_SHARE = 0.35  # of the training pictures show a trio
VISIBILITY_SHARE: dict[Visibility, float] = {"clear": 0.4, "medium": 0.3, "poor": 0.3}


def training_scene(index: int, split: Split = "train") -> Scene:
    """The index-th picture of the training mixture (of the same mixture in another split, for validation)."""
    rng = np.random.default_rng([index, 20])
    kind: Kind = "independent"
    if rng.random() < TRIO_SHARE:
        kind = "trio" if rng.random() < CO_OCCURRENCE else "broken"
    names, shares = zip(*VISIBILITY_SHARE.items(), strict=True)
    visibility: Visibility = names[int(rng.choice(len(names), p=shares))]
    return scene(split, kind, visibility, index)


def coverage(masks: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.uint8]:
    """Share of every patch that each object covers: [49, objects], 0..255."""
    out = np.zeros((GRID * GRID, len(OBJECTS)), np.uint8)
    for name, mask in masks.items():
        blocks = mask.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))  # [7, 7]
        out[:, OBJECTS.index(name)] = np.round(blocks.reshape(-1) * 255)
    return out


@dataclass
class Pictures:
    """The rendered pictures: pixels [n, 112, 112, 3] uint8, patches [n, 49, objects] uint8, scenes [n]."""

    pixels: npt.NDArray[np.uint8]
    patches: npt.NDArray[np.uint8]
    scenes: list[Scene]

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """[n, objects]"""
        return np.array([[name in s.names for name in OBJECTS] for s in self.scenes])


def _render_part(job: tuple[Path, Split, int, int, int]) -> list[Scene]:
    folder, split, count, start, stop = job
    pixels, patches = _open(folder, split, count, "r+")
    scenes = []
    for index in range(start, stop):
        scenes.append(training_scene(index, split))
        image, masks = render(scenes[-1])
        pixels[index], patches[index] = image, coverage(masks)
    return scenes


def _open(folder: Path, split: str, count: int, mode: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    def memory(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        return np.lib.format.open_memmap(  # type: ignore[no-any-return,no-untyped-call]
            folder / f"{split}-{count}-{name}.npy", mode=mode, dtype=np.uint8, shape=(count, *shape)
        )

    return memory("pixels", (SIZE, SIZE, 3)), memory("patches", (GRID * GRID, len(OBJECTS)))


def pictures(folder: Path, split: Split, count: int, workers: int = 2) -> Pictures:
    """The first `count` pictures of a split, from the cache or rendered into it."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / f"{split}-{count}-scenes.npy"
    if not index.exists():
        _open(folder, split, count, "w+")
        edges = np.linspace(0, count, max(2, count // 500 + 1)).astype(int)
        jobs = [(folder, split, count, int(a), int(b)) for a, b in itertools.pairwise(edges)]
        began, scenes = time.time(), list[Scene]()
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for number, part in enumerate(pool.imap(_render_part, jobs), 1):
                scenes += part
                if number % 20 == 0 or number == len(jobs):
                    rate = len(scenes) / (time.time() - began)
                    left = (count - len(scenes)) / rate
                    print(f"render {split} {len(scenes)}/{count}  {rate:.0f}/s  {left:.0f} s left", flush=True)
        np.save(index, np.array(scenes, dtype=object), allow_pickle=True)
    pixels, patches = _open(folder, split, count, "r")
    return Pictures(pixels, patches, list(np.load(index, allow_pickle=True)))
