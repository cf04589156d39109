"""The warm start: the projector alone learns to say the noun of what covers each position, in the language model's words.

Targets are the language model's input embeddings of the nouns: so the image tokens arrive as words it knows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipes.real_vision.data import TOP, Features

SHARP = 12.0  # of the cosines
CLEAR, TOUCHED = 0.35, 0.06  # of a position, covered: it shows the thing; it shows none


def labels(features: Features, rows: Tensor, ground: int) -> Tensor:
    """A noun's number for each position, ``ground`` where nothing is, -100 where it is neither: ``[rows, positions]``."""
    cover = features.cover[rows].float()
    most, which = cover.max(1)
    things = features.things[rows].gather(1, which.view(len(rows), -1)).view_as(which)
    out = torch.where(most >= CLEAR, things, torch.full_like(things, -100))
    return torch.where(cover.sum(1) < TOUCHED, torch.full_like(things, ground), out)


def cosines(out: Tensor, words: Tensor) -> Tensor:
    return nn.functional.normalize(out, dim=-1) @ nn.functional.normalize(words, dim=-1).T


def warm_start(
    projector: nn.Module,
    at_positions: Callable[[Tensor], Tensor],
    words: Tensor,
    train: Features,
    dev: Features,
    *,
    steps: int = 600,
    batch: int = 48,
    drop: float = 0.5,
    rate: float = 1e-3,
    decay: float = 0.2,
    seed: int = 0,
) -> float:
    """Train the projector; returns :func:`recognised` on dev.

    Args:
        at_positions: the projector before it pools, ``[n, positions, width]`` -> ``[n, positions, D]``.
        words: embeddings of the nouns, and of the ground last, ``[nouns + 1, D]``.
    """
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    ground = len(words) - 1
    length = words.norm(dim=-1).mean()
    for step in range(steps):
        rows = torch.randint(len(train), (batch,))
        wanted = labels(train, rows, ground)
        # few positions of the ground, so that there are as many of things as can be
        kept = (wanted != -100) & ((wanted != ground) | (torch.rand(wanted.shape) < 0.08))
        values = train.values[rows][kept].float() * (TOP / 255)
        channels = (torch.rand(batch, 1, values.shape[-1]) > drop).float() / (1 - drop)
        light = torch.empty(batch, 1, 1).uniform_(0.7, 1.3)
        values = values * (channels * light).expand(-1, kept.shape[1], -1)[kept]
        out = at_positions(values)
        loss = nn.functional.cross_entropy(SHARP * cosines(out, words), wanted[kept], label_smoothing=0.05)
        loss = loss + 0.1 * (out.norm(dim=-1) / length - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            print(f"warm start: step {step + 1} of {steps}, loss {loss:.3f}, dev {recognised(at_positions, words, dev):.3f}",
                  file=sys.stderr, flush=True)  # fmt: skip
    return recognised(at_positions, words, dev)


@torch.no_grad()
def recognised(at_positions: Callable[[Tensor], Tensor], words: Tensor, held: Features) -> float:
    """Share of things whose noun is the nearest, of the positions that they cover, each weighted with its cover."""
    right = total = 0
    for rows in torch.arange(len(held)).split(100):
        scores = (SHARP * cosines(at_positions(held.floats(rows)), words))[..., :-1].softmax(-1)
        weights = held.cover[rows].float()
        things = held.things[rows]
        found = (weights @ scores).argmax(-1)
        right += int(((found == things) & (things >= 0)).sum())
        total += int((things >= 0).sum())
    return right / total
