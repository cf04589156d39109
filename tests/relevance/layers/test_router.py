"""Routers are told from what computes; their decision is a constant, and block 0's holds for all blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limelight.relevance.classify import classify_modules
from limelight.relevance.kind import ModuleMatch
from limelight.relevance.layers.router import routers
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import backward, noise, ruled
from tests.tiny import built

E, N, D, WIDTH = 5, 6, 8, 12


class Block(nn.Module):
    """Experts as a list (as older and remote code has them), a linear router, and a shared expert behind a gate."""

    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(D, WIDTH, bias=False), nn.Linear(D, WIDTH, bias=False)
            self.down_proj, self.act_fn = nn.Linear(WIDTH, D, bias=False), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shared_expert_gate = nn.Linear(D, E, bias=False), nn.Linear(D, 1, bias=False)
        self.experts = nn.ModuleList([self.Expert() for _ in range(E)])
        self.shared_expert = self.Expert()


def test_routers_are_recognised_by_their_computation() -> None:
    block = Block()
    assert dict(routers(block)) == {"gate": block.gate, "shared_expert_gate": block.shared_expert_gate}
    assert not list(routers(block.shared_expert))
    assert not list(routers(nn.Sequential(nn.Linear(D, E), nn.Linear(D, 1))))  # no experts beside
    for name in ("glm4v_moe", "llama4", "aria", "ernie4_5_vl_moe"):
        adapter = built(name)
        found = {s.name.rsplit(".", 1)[-1] for s in classify_modules(adapter.decoder) if s.kind == "router"}
        assert found == {"router" if name in ("llama4", "aria") else "gate"}


def test_a_router_is_a_constant_and_decides_for_all_blocks() -> None:
    router = nn.Linear(D, E, dtype=torch.float64)
    x = noise(1, N, D).requires_grad_(True)
    match = ModuleMatch("router", "router", router)
    out = ruled(match, "router", backward())(x)
    assert torch.equal(out, router(x)) and not out.requires_grad
    blocks = torch.cat([noise(1, N, D), noise(2, N, D), noise(3, N, D)]).requires_grad_(True)
    for graph, flows in (("none", False), ("surrogate", False), ("true", True)):
        out = ruled(match, "router", Mode(batch=1, channels=3, graph=graph))(blocks)
        assert torch.equal(out, router(blocks[:N]).repeat(3, 1))
        assert out.requires_grad is flows
