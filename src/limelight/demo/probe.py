"""A probe that predicts the objects from the projected image tokens: an upper bound on what the language model can read."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limelight.demo.scenes import OBJECTS

PROBE_FILE = Path(__file__).parent / "vision" / "probe.safetensors"
FILM_PROBE_FILE = Path(__file__).parent / "video" / "probe.safetensors"


class Probe(nn.Module):
    """Projected image (or audio) tokens [n, 49, d] -> one logit per object of the world [n, objects]; above 0: yes.

    A per-token MLP scores every object against "no object"; the scores are pooled by log-sum-exp. Trained on training
    images with present and absent objects weighted equally, so that 0 is the threshold for balanced questions.
    """

    def __init__(self, wide: int, hidden: int = 64, objects: int = len(OBJECTS)) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, objects + 1))
        self.scale = nn.Parameter(torch.ones(objects))
        self.shift = nn.Parameter(torch.zeros(objects))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the objects in the whole medium."""
        scores = self.net(tokens)  # [n, 49, objects + 1]
        pooled = torch.logsumexp(scores[..., :-1] - scores[..., -1:], dim=1)  # [n, objects]
        return pooled * self.scale + self.shift

    @classmethod
    def load(cls, path: Path = PROBE_FILE) -> Self:
        """Load the shipped probe, in evaluation mode."""
        weights = load_file(path)
        probe = cls(weights["net.0.weight"].shape[0], weights["net.1.weight"].shape[0], len(weights["scale"]))
        probe.load_state_dict(weights)
        return probe.eval()

    def save(self, path: Path = PROBE_FILE) -> None:
        """Write the weights as safetensors."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path)


class FrameProbe(Probe):
    """Projected video tokens [n, frames * cells + 1, d] (the last one: the newline) -> logits [n, frames, objects]."""

    frames = 8

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the objects in each frame."""
        n, positions, wide = tokens.shape
        each = tokens[:, :-1].reshape(n * self.frames, (positions - 1) // self.frames, wide)  # [n * frames, cells, d]
        return super().forward(each).reshape(n, self.frames, -1)
