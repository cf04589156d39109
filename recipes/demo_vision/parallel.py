"""Two single-thread processes that average their gradients (faster here than one process with two threads)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn


def run(stage: Callable[..., None], world: int, port: int, *args: Any) -> None:
    """Calls stage(rank, world, *args) in `world` processes."""
    if world == 1:
        stage(0, 1, *args)
    else:
        mp.spawn(_enter, (stage, world, port, args), nprocs=world)


def _enter(rank: int, stage: Callable[..., None], world: int, port: int, args: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    stage(rank, world, *args)
    dist.destroy_process_group()


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; where not, it is ten times slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Float32Muon(torch.optim.Optimizer):
    """torch.optim.Muon (match_rms_adamw) with the orthogonalisation in float32, for processors without bfloat16."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                x = p.grad.lerp(momentum, 0.95)
                x = x.T if len(p) > p.shape[1] else x
                x = x / x.norm().clamp(min=1e-7)
                for _ in range(5):  # Newton-Schulz, Jordan et al. 2024
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                x = x.T if len(p) > p.shape[1] else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


class Optimiser:
    """Muon for the matrices of the blocks, AdamW for everything else; warm-up, then a cosine down to 2 %."""

    def __init__(self, modules: Iterable[nn.Module], steps: int, *, muon: float, adam: float) -> None:
        named = [pair for module in modules for pair in module.named_parameters() if pair[1].requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "layers" in name]
        others = [p for name, p in named if not (p.ndim == 2 and "layers" in name)]
        self.parameters, self.steps, self.step_number = matrices + others, steps, 0
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=0.01)
        ]
        if matrices and has_bfloat16():
            self.parts.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"))
        elif matrices:
            self.parts.append(Float32Muon(matrices, lr=muon, weight_decay=0.02))
        self.rates = [adam, muon]

    def step(self, loss: Tensor, world: int) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        held = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if world > 1:
            flat = torch.cat([g.reshape(-1) for g in held])
            dist.all_reduce(flat)
            for grad, new in zip(held, flat.div_(world).split([g.numel() for g in held]), strict=True):
                grad.copy_(new.view_as(grad))
        for p, grad in zip(self.parameters, held, strict=True):
            p.grad = grad
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        done = self.step_number / self.steps
        share = min(1.0, (self.step_number + 1) / (0.04 * self.steps)) * (
            0.51 + 0.49 * math.cos(math.pi * min(1.0, done))
        )
        for part, rate in zip(self.parts, self.rates, strict=False):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
        self.step_number += 1


class Progress:
    """Prints loss, rate and time left every few steps (rank 0 only)."""

    def __init__(self, name: str, steps: int, rank: int, every: int = 50, first: int = 0) -> None:
        self.name, self.steps, self.rank, self.every, self.first = name, steps, rank, every, first
        self.began, self.loss = time.time(), 0.0

    def __call__(self, step: int, loss: Tensor, note: str = "") -> None:
        self.loss = float(loss.detach()) if step == self.first else 0.95 * self.loss + 0.05 * float(loss.detach())
        if self.rank == 0 and ((step + 1) % self.every == 0 or step + 1 == self.steps):
            spent = time.time() - self.began
            left = spent / (step + 1 - self.first) * (self.steps - step - 1)
            print(
                f"{self.name} {step + 1}/{self.steps}  loss {self.loss:.4f}  {spent:.0f} s, {left:.0f} s left {note}",
                flush=True,
            )
