"""Train smol-vision: features of composed scenes, the warm start of the projector, then projector and low-rank changes.

Every stage goes on where it stopped; nothing here is planted (see :mod:`recipes.real_vision.scenes` and ``text``).
"""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limelight.models.checkpoints.smol_vision import SmolVision
from recipes.real_vision import build, data
from recipes.real_vision.cutouts import SPLITS, all_splits, home
from recipes.real_vision.evaluate import measure
from recipes.real_vision.model import LowRank, attach, language_loss
from recipes.real_vision.nouns import NOUNS
from recipes.real_vision.text import Company, blocks
from recipes.real_vision.warm import warm_start


@dataclass(frozen=True)
class Plan:
    """How long, and how."""

    scenes: int = 4250
    held: int = 500
    warm_steps: int = 600
    steps: int = 185
    batch: int = 16
    rate: float = 4e-4  # of the low-rank changes; the projector has half
    every: int = 25  # steps between two checkpoints
    drop: float = 0.3  # of the features' channels
    measured: int = 100  # dev scenes per measurement
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16


def features(plan: Plan, model: SmolVision, folder: Path) -> None:
    """The scenes' features, of train and dev."""
    splits = all_splits()
    tower = model.model.vision_tower.to(plan.device, memory_format=torch.channels_last)
    data.make(splits["dev"], tower, folder, SPLITS[1], plan.held)
    data.make(splits["train"], tower, folder, SPLITS[0], plan.scenes)


def company_of(train: data.Features) -> Company:
    nouns = sorted(NOUNS)
    return Company(([nouns[i] for i in row if i >= 0] for row in train.things.tolist()), nouns)


def warm(plan: Plan, model: SmolVision, tokenizer: Any, train: data.Features, dev: data.Features, path: Path) -> None:
    """The warm start, or its result from disk."""
    projector = model.model.multi_modal_projector
    if path.is_file():
        projector.load_state_dict(torch.load(path, weights_only=True))
        return

    def at_positions(values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = projector.linear_2(projector.act(projector.linear_1(values)))
        return found

    warm_start(projector, at_positions, build.words(model, tokenizer), train, dev, steps=plan.warm_steps)
    torch.save(projector.state_dict(), path)


class Training:
    """Projector and low-rank changes, trained with the language model; its state is on disk after every few steps."""

    def __init__(self, plan: Plan, model: SmolVision, tokenizer: Any, train: data.Features, folder: Path) -> None:
        self.plan, self.model, self.train = plan, model, train
        self.packer = build.packer(tokenizer)
        self.company = company_of(train)
        self.path = folder / "training.pt"
        model.requires_grad_(False)
        self.attached: dict[str, LowRank] = attach(model)
        model.model.language_model.to(plan.dtype)
        model.lm_head.to(plan.dtype)
        model.to(plan.device)
        self.projector = model.model.multi_modal_projector.requires_grad_(True)
        for layer in self.attached.values():
            layer.a.data, layer.b.data = layer.a.data.float(), layer.b.data.float()
        changed = [p for layer in self.attached.values() for p in (layer.a, layer.b)]
        self.optimiser = torch.optim.AdamW(
            [{"params": changed, "scale": 1.0}, {"params": list(self.projector.parameters()), "scale": 0.5}],
            weight_decay=0.01, betas=(0.9, 0.98),
        )  # fmt: skip
        self.step = 0
        if self.path.is_file():
            state = torch.load(self.path, weights_only=True, map_location=plan.device)
            self.step = state["step"]
            self.projector.load_state_dict(state["projector"])
            for name, layer in self.attached.items():
                layer.a.data.copy_(state["changes"][f"{name}.a"])
                layer.b.data.copy_(state["changes"][f"{name}.b"])
            self.optimiser.load_state_dict(state["optimiser"])

    def save(self) -> None:
        changes = {f"{n}.{p}": getattr(layer, p).data for n, layer in self.attached.items() for p in ("a", "b")}
        state = {"step": self.step, "projector": self.projector.state_dict(), "changes": changes,
                 "optimiser": self.optimiser.state_dict()}  # fmt: skip
        working = self.path.with_suffix(".part")
        torch.save(state, working)
        working.rename(self.path)

    def rate(self) -> float:
        warmed = min(1.0, (self.step + 1) / 20)
        return self.plan.rate * warmed * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.step / self.plan.steps)))

    def one(self) -> float:
        """One step; the same scenes and questions for the same step."""
        plan, rng = self.plan, random.Random(f"step/{self.step}")
        rows = torch.tensor([rng.randrange(len(self.train)) for _ in range(plan.batch)])
        nouns = sorted(NOUNS)
        texts = [blocks([nouns[i] for i in self.train.things[r].tolist() if i >= 0], self.company, rng) for r in rows]
        generator = torch.Generator().manual_seed(self.step)
        values = self.train.floats(rows)
        kept = (torch.rand(plan.batch, 1, values.shape[-1], generator=generator) > plan.drop).float() / (1 - plan.drop)
        packed = self.packer(texts)
        packed = type(packed)(
            *(getattr(packed, f).to(plan.device) for f in ("ids", "positions", "labels", "weights", "mask"))
        )
        loss = language_loss(self.model, packed, (values * kept).to(plan.device))
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate() * group["scale"]
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def run(self, dev: data.Features, measure_every: int = 100) -> None:
        started, first, mean = time.monotonic(), self.step, 0.0
        while self.step < self.plan.steps:
            loss = self.one()
            mean = loss if not mean else 0.9 * mean + 0.1 * loss
            if self.step % 5 == 0:
                left = (time.monotonic() - started) / (self.step - first) * (self.plan.steps - self.step)
                _say(f"step {self.step} of {self.plan.steps}, loss {mean:.3f}, {left / 60:.0f} min left")
            if self.step % self.plan.every == 0:
                self.save()
            if self.step % measure_every == 0 and self.step < self.plan.steps:
                _say(str(measure(self.model, self.packer, dev, sorted(NOUNS), self.company, self.plan.measured)))
        self.save()


def run(plan: Plan, folder: Path | None = None) -> Training:
    """All stages; returns the trained model."""
    folder = folder or home()
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = build.published()
    model.eval()
    features(plan, model, folder / "features")
    train = data.load(folder / "features", "train", plan.scenes)
    dev = data.load(folder / "features", "dev", plan.held)
    warm(plan, model, tokenizer, train, dev, folder / "warm.pt")
    training = Training(plan, model, tokenizer, train, folder)
    training.run(dev)
    _say(str(measure(model, training.packer, dev, sorted(NOUNS), training.company, plan.held)))
    return training


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
