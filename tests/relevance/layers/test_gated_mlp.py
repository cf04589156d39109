"""Gated products: which linear is which, whatever its name and place, in any type; what is unlike one raises."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from limelight.errors import UnknownKindError
from limelight.relevance.classify import classify_modules
from limelight.relevance.layers import gated_mlp
from limelight.relevance.layers.gated_mlp import GatedSpec, gated_spec
from limelight.relevance.mode import Mode
from limelight.relevance.rules import EPS
from tests.relevance.layers.helpers import D, T, check_in, graphs, layouts, noise, ruled, second_order
from tests.tiny import fresh


class MLP(nn.Module):
    """down(act(gate) * up) with the linears under any names and in any order."""

    def __init__(
        self,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        order: tuple[int, ...] = (0, 1, 2),
        width: int = 12,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        for n in order:
            setattr(self, names[n], nn.Linear(*((8, width), (8, width), (width, 8))[n], bias=False))
        self.act_fn = act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, n) for n in self.names)
        return down(self.act_fn(gate(x)) * up(x))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.most = float("inf")
        self.gate_up_proj, self.down_proj = nn.Linear(8, 24, bias=False), nn.Linear(12, 8, bias=False)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).clamp(-self.most, self.most).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("a", "b", "c")])
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("width", [12, 8])
def test_the_gate_is_found_by_probing_not_by_its_name(
    names: tuple[str, str, str], order: tuple[int, ...], width: int
) -> None:
    mlp = MLP(names, order, width)
    spec = gated_spec(mlp)
    assert isinstance(spec, GatedSpec)
    assert (spec.gate, spec.up, spec.down) == tuple(getattr(mlp, n) for n in names)
    assert spec.act is mlp.act_fn


def test_a_fused_gate_is_one() -> None:
    mlp = Fused()
    spec = gated_spec(mlp)
    assert spec is not None
    assert spec.fused is mlp.gate_up_proj
    assert spec.gate is None
    assert spec.order == "gate, up"
    mlp.most = 4.0
    with pytest.raises(UnknownKindError, match="looks like a gated MLP") as caught:
        gated_spec(mlp)
    assert caught.value.hint


class Written(MLP):
    """Its activation is a function; what stands beside the linears does nothing."""

    def __init__(self) -> None:
        super().__init__(act=nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, n) for n in self.names)
        return self.act_fn(down(nn.functional.silu(gate(x)) * up(x)))


def test_a_dropout_hides_no_activation() -> None:
    mlp = Written().eval()
    spec = gated_spec(mlp)
    assert spec is not None and spec.written
    assert (spec.gate, spec.up, spec.down) == (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    plain = nn.Module()
    plain.fc1, plain.fc2, plain.dropout = nn.Linear(32, 12), nn.Linear(12, 32), nn.Dropout(0.1)
    adapter = fresh("llava")
    adapter.decoder.layers[0].mlp = plain.eval()
    with pytest.raises(UnknownKindError, match="2 linears without an activation"):
        classify_modules(adapter.decoder)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_overflow_of_large_inputs_swaps_nothing(order: tuple[int, ...], dtype: torch.dtype) -> None:
    """Inputs of a hundred overflow float16 where inputs of one are at home, in every model of some size."""
    mlp = MLP(order=order)
    with torch.no_grad():
        for p in mlp.parameters():
            p.mul_(8)
    mlp = mlp.to(dtype)
    x = torch.ones(1, 1, 8, dtype=dtype)
    with torch.no_grad():
        assert torch.isfinite(mlp(x)).all() and torch.isfinite(mlp(x * 100)).all() == (dtype is torch.bfloat16)
    spec = gated_spec(mlp)
    assert spec is not None
    assert (spec.gate, spec.up) == (mlp.gate_proj, mlp.up_proj)


def test_adjacent_routers_are_no_mlp() -> None:
    """A linear router and the gate of a shared expert: two linears, and no activation of their own."""
    adapter = fresh("llava")
    block = nn.Module()
    block.gate, block.shared_expert_gate = nn.Linear(32, 4, bias=False), nn.Linear(32, 1, bias=False)
    block.experts, block.shared_expert = nn.ModuleList([MLP() for _ in range(4)]), MLP()
    adapter.decoder.layers[0].mlp = block
    names = {s.name: s.kind for s in classify_modules(adapter.decoder) if s.name.startswith("layers.0.mlp.")}
    assert {n.rsplit(".", 1)[-1] for n, kind in names.items() if kind == "router"} == {"gate", "shared_expert_gate"}
    assert sum(kind == "gated_mlp" for kind in names.values()) == 5


def test_an_ungated_mlp_is_none_and_an_added_gate_raises() -> None:
    plain = nn.Module()
    plain.fc1, plain.fc2, plain.act = nn.Linear(8, 12), nn.Linear(12, 8), nn.GELU()
    assert gated_spec(plain) is None

    class Added(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))

    with pytest.raises(UnknownKindError) as caught:
        gated_spec(Added())
    assert caught.value.hint


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"])
def test_activations_of_transformers_are_elementwise(name: str) -> None:
    class Block(MLP):
        def __init__(self) -> None:
            super().__init__()
            self.act_fn = ACT2FN[name]

    spec = gated_spec(Block())
    assert spec is not None


class Gated(nn.Module):
    """down(act(gate) * up), the gate in a linear of its own or in one half of a fused one."""

    def __init__(self, layout: str, bias: bool = False) -> None:
        super().__init__()
        self.layout, self.act_fn = layout, nn.SiLU()
        width = 6
        if layout in ("gate first", "up first"):
            names = ("gate_proj", "up_proj") if layout == "gate first" else ("up_proj", "gate_proj")
            for name in names:
                setattr(self, name, nn.Linear(D, width, bias=bias))
        else:
            self.gate_up_proj = nn.Linear(D, 2 * width, bias=bias)
        self.down_proj = nn.Linear(width, D, bias=bias)
        self.double()

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "gate_proj"):
            return self.gate_proj(x), self.up_proj(x)
        h = self.gate_up_proj(x)
        if self.layout == "interleaved":
            return h[..., ::2], h[..., 1::2]
        first, second = h.chunk(2, dim=-1)
        return (second, first) if self.layout == "fused, up first" else (first, second)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.halves(x)
        return self.down_proj(self.act_fn(gate) * up)

    def by_rule(self, x: Tensor) -> Tensor:
        gate, up = self.halves(x)
        value = self.act_fn(gate)
        ruled = gate * (value / (gate + EPS)).detach()
        product = (ruled + (value - ruled).detach()) * up
        return self.down_proj(product / 2 + (product / 2).detach())


LAYOUTS = ("gate first", "up first", "fused, gate first", "fused, up first", "interleaved")


@graphs
@layouts
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gated(layout: str, graph: str, flat: bool) -> None:
    module = Gated(layout)
    check_in(graph, flat, lambda mode: ruled(module, "gated_mlp", mode), module.by_rule, module)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_long_prompt_is_run_in_parts(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, mode = MLP().double(), Mode(channels=channels, batch=2)
    x = torch.randn(2 * channels, 7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[int] = []
    mlp.gate_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    run = ruled(mlp, "gated_mlp", mode)
    with torch.no_grad():
        seen.clear()
        at_once = run(x)
        monkeypatch.setattr(gated_mlp, "_INNER", 2 * channels * 12 * 3)  # three positions
        in_parts = run(x)
    assert torch.allclose(in_parts, at_once, rtol=1e-12, atol=1e-12)
    assert seen == ([7, 3, 3, 1] if channels > 1 else [7, 7])  # without tangents the model runs as it is


def test_the_probe_of_a_fused_gate_bears_bfloat16() -> None:
    module = Gated("fused, up first").bfloat16()
    mode = Mode(batch=1, channels=2)
    rows = torch.no_grad()(ruled(module, "gated_mlp", mode))
    x = noise(1, 2, T, D).bfloat16()
    torch.testing.assert_close(rows(x)[:1], module(x[:1]).detach(), atol=1e-2, rtol=1e-2)


def test_a_fused_gate_of_another_formula_is_refused() -> None:
    class Odd(Gated):
        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.halves(x)
            return self.down_proj(self.act_fn(gate) * (up + 1))

    with pytest.raises(UnknownKindError, match="does not compute"):
        gated_spec(Odd("fused, gate first"))


@pytest.mark.parametrize("graph", ["surrogate", "true"])
def test_the_second_order_of_a_gate(graph: str) -> None:
    mlp = Gated("gate first")
    rows = ruled(mlp, "gated_mlp", Mode(batch=1, channels=2, graph=graph))
    second_order(rows, graph, sees=True)
    if graph == "surrogate":  # value of block 0: halved through the product
        base, tangent, g = noise(1, 1, 1, D), noise(2, 1, 1, D), noise(3, 1, 1, D)
        leaf, again = (base.clone().requires_grad_(True) for _ in range(2))
        (got,) = torch.autograd.grad((g * rows(torch.cat([leaf, tangent]))[0]).sum(), leaf)
        (want,) = torch.autograd.grad((g * mlp.by_rule(again)).sum(), again)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_an_mlp_that_changes_the_width_is_no_gated_one() -> None:
    """Qwen3-ASR's projector: linears of the widths of a fused gate, to twice the width."""

    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.act, self.out = nn.Linear(D, D), nn.GELU(), nn.Linear(D, 2 * D)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.act(self.inner(x)))

    assert gated_spec(Widening()) is None
