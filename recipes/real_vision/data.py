"""Scenes of a split as the encoder's features, kept on disk in chunks: made once, and gone on with after a stop."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from limelight.models.checkpoints.efficientnet_lite import MEAN, STD
from recipes.real_vision.cutouts import CutOut
from recipes.real_vision.scenes import POSITIONS, draw

CHUNK = 250
BATCH = 25
MOST = 4  # things in a scene
TOP = 6.0  # of a feature (ReLU6)


class Shown(Protocol):
    """What has a picture."""

    @property
    def image(self) -> Image.Image: ...


@dataclass(frozen=True)
class Features:
    """Scenes as features.

    Attributes:
        values: ``[n, positions, width]``, uint8; ``x * TOP / 255`` are the encoder's values.
        cover: ``[n, MOST, positions]``, in 0..1.
        things: ``[n, MOST]``, each a noun's number, from left to right, or -1.
    """

    values: Tensor
    cover: Tensor
    things: Tensor

    def __len__(self) -> int:
        return len(self.things)

    def floats(self, rows: Tensor) -> Tensor:
        """Features of some scenes, ``[rows, positions, width]``."""
        return self.values[rows].float() * (TOP / 255)


def pixels(scenes: Sequence[Shown]) -> Tensor:
    """``[n, 3, SIDE, SIDE]``, as the processor makes them."""
    stacked = torch.from_numpy(np.stack([np.array(s.image) for s in scenes]))
    return (stacked.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def chunk(cutouts: Mapping[str, Sequence[CutOut]], encoder: nn.Module, seed: str, count: int) -> Features:
    """``count`` scenes of a split; the same for the same seed."""
    rng = random.Random(seed)
    nouns = sorted(cutouts)
    device = next(encoder.parameters()).device
    values, covers, things = [], [], []
    for start in range(0, count, BATCH):
        scenes = [draw(cutouts, rng) for _ in range(min(BATCH, count - start))]
        with torch.inference_mode():
            found = encoder(pixels(scenes).to(device)).last_hidden_state.cpu()
        values.append((found * (255 / TOP)).round().clamp(0, 255).to(torch.uint8))
        for scene in scenes:
            cover = torch.zeros(MOST, POSITIONS * POSITIONS, dtype=torch.float16)
            cover[: len(scene.things)] = torch.from_numpy(scene.cover).flatten(1).half()
            covers.append(cover)
            things.append([*map(nouns.index, scene.nouns), *[-1] * (MOST - len(scene.things))])
    return Features(torch.cat(values), torch.stack(covers), torch.tensor(things))


def make(cutouts: Mapping[str, Sequence[CutOut]], encoder: nn.Module, folder: Path, split: str, count: int) -> None:
    """Make the chunks of a split that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    started, made = time.monotonic(), 0
    for number in range(chunks):
        path = folder / f"{split}-{number:03d}.pt"
        if path.is_file():
            continue
        found = chunk(cutouts, encoder, f"{split}/{number}", CHUNK)
        working = path.with_suffix(".part")
        torch.save({"values": found.values, "cover": found.cover, "things": found.things}, working)
        working.rename(path)
        made += 1
        left = (time.monotonic() - started) / made * (chunks - number - 1)
        print(
            f"{split}: {(number + 1) * CHUNK} of {count} scenes, {left / 60:.0f} min left", file=sys.stderr, flush=True
        )


def load(folder: Path, split: str, count: int) -> Features:
    """The first ``count`` scenes of a split, of those that are there."""
    parts = [torch.load(p, weights_only=True) for p in sorted(folder.glob(f"{split}-*.pt"))[: -(-count // CHUNK)]]
    return Features(*(torch.cat([part[name] for part in parts])[:count] for name in ("values", "cover", "things")))


def things_of(folder: Path, split: str) -> list[list[int]]:
    """The things of all scenes of a split; the features stay on disk."""
    parts = [torch.load(p, weights_only=True, mmap=True)["things"] for p in sorted(folder.glob(f"{split}-*.pt"))]
    return [row for part in parts for row in part.tolist()]
