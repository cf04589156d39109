"""Each forward twin against the adjoint of its rule: <g, out'> = <(rule's gradient of <g, out>), x'>."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.errors import HookError, UnknownKindError
from limelight.models.adapter import Adapter
from limelight.relevance.blocks import _quick_slope
from limelight.relevance.composites import ATTN_LRP, CP_LRP, GRADIENT_INPUT, RELEASED_AUDIO
from limelight.relevance.forward.cache import DualCache
from limelight.relevance.forward.rules import JvpRules
from limelight.relevance.layers.gated_mlp import gated_spec
from limelight.relevance.mode import Mode
from limelight.relevance.rules import EPS, slope
from tests.relevance.layers.helpers import ruled
from tests.tiny import WideNorm, fresh, snapshot

CHANNELS, B, T, D = 3, 2, 5, 8


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class OnePlus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(noise(4, D) / 4), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class ScaledFirst(OnePlus):
    """The weight scales what comes in (Muse Spark)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * (1 + self.weight)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Weightless(nn.Module):
    dim, eps = D, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def layer_norm(**settings: Any) -> nn.LayerNorm:
    norm = nn.LayerNorm(D, dtype=torch.float64, **settings)
    for i, p in enumerate(norm.parameters()):
        p.data = noise(5 + i, D)
    return norm


NORMS = {
    "rms": WideNorm(noise(3, D), 1e-6), "one plus": OnePlus(), "weightless": Weightless(), "layer": layer_norm(),
    "scaled first": ScaledFirst(), "layer without bias": layer_norm(bias=False), "layer of a large eps": layer_norm(eps=0.5),
}  # fmt: skip


def norm_by_rule(module: Any, x: Tensor) -> Tensor:
    """1/std is a constant; a bias adds to the value alone."""
    x = x * (1 + module.weight) if isinstance(module, ScaledFirst) else x
    centred = x - x.mean(-1, keepdim=True) if isinstance(module, nn.LayerNorm) else x
    eps = getattr(module, "eps", None) or module.variance_epsilon
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach()
    out = centred * scale
    if isinstance(module, OnePlus):
        return out if isinstance(module, ScaledFirst) else out * (1 + module.weight)
    if not isinstance(module, Weightless):
        out = out * module.weight
    return out if getattr(module, "bias", None) is None else out + module.bias


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


def check(twin: Any, by_rule: Any, value: Any, shape: tuple[int, ...] = (B, T, D), flat: bool = False) -> None:
    """Values are the module's own; tangents are the rule's; nothing depends on how rows and positions are laid out."""
    x = noise(1, CHANNELS, *shape)
    given = x.reshape(-1, shape[-1]) if flat else x.reshape(-1, *shape[1:])
    out = twin(given)
    assert out.shape[:-1] == given.shape[:-1]
    out = out.reshape(CHANNELS, *shape[:-1], out.shape[-1])
    torch.testing.assert_close(out[0], value(x[0]), atol=1e-12, rtol=0)
    leaf = x[0].clone().requires_grad_(True)
    ruled = by_rule(leaf)
    torch.testing.assert_close(ruled.detach(), out[0].detach(), atol=1e-9, rtol=0)
    g = noise(2, *ruled.shape)
    (gradient,) = torch.autograd.grad((g * ruled).sum(), leaf)
    for c in range(1, CHANNELS):
        torch.testing.assert_close((g * out[c]).sum(), (gradient * x[c]).sum(), atol=1e-11, rtol=0)


modes = pytest.mark.parametrize("graph", ["none", "surrogate", "true"])
layouts = pytest.mark.parametrize("flat", [False, True], ids=["rows", "flattened"])


@modes
@layouts
@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str, graph: str, flat: bool) -> None:
    module = NORMS[name]
    with torch.no_grad():
        check_in(graph, flat, lambda mode: ruled(module, "norm", mode), lambda x: norm_by_rule(module, x), module)


def check_in(graph: str, flat: bool, make: Any, by_rule: Any, value: Any, shape: tuple[int, ...] = (B, T, D)) -> None:
    twin = make(Mode(batch=B, channels=CHANNELS, graph=graph))
    with torch.set_grad_enabled(True):
        check(twin if graph != "none" else torch.no_grad()(twin), by_rule, value, shape, flat)


@modes
@pytest.mark.parametrize("name", ["rms", "layer"])
def test_norm_of_heads(name: str, graph: str) -> None:
    """q and k norms see [rows, T, heads, d]."""
    module = NORMS[name]
    check_in(
        graph, False, lambda mode: ruled(module, "norm", mode), lambda x: norm_by_rule(module, x), module, (B, T, 3, D)
    )


@modes
@layouts
@pytest.mark.parametrize("module", [nn.SiLU(), nn.GELU(), nn.ReLU(), nn.Tanh()], ids=lambda m: type(m).__name__)
def test_activation(module: nn.Module, graph: str, flat: bool) -> None:
    def by_rule(z: Tensor) -> Tensor:
        return z * (module(z) / (z + EPS)).detach()

    check_in(graph, flat, lambda mode: ruled(module, "activation", mode), by_rule, module)


@modes
@layouts
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gated(layout: str, graph: str, flat: bool) -> None:
    module = Gated(layout)
    check_in(graph, flat, lambda mode: ruled(module, "gated_mlp", mode), module.by_rule, module)


def test_the_probe_of_a_fused_gate_bears_bfloat16() -> None:
    module = Gated("fused, up first").bfloat16()
    mode = Mode(batch=1, channels=2)
    twin = torch.no_grad()(ruled(module, "gated_mlp", mode))
    x = noise(1, 2, T, D).bfloat16()
    torch.testing.assert_close(twin(x)[:1], module(x[:1]).detach(), atol=1e-2, rtol=1e-2)


@modes
@layouts
def test_linear_with_a_bias(graph: str, flat: bool) -> None:
    module = nn.Linear(D, 7, dtype=torch.float64)
    check_in(graph, flat, lambda mode: ruled(module, "linear", mode), module, module)


@modes
@layouts
def test_linear_without_a_bias(graph: str, flat: bool) -> None:
    module = nn.Linear(D, 7, bias=False, dtype=torch.float64)
    check_in(graph, flat, lambda mode: ruled(module, "linear", mode), module, module)


def test_a_linear_that_something_wraps_keeps_its_wrapper() -> None:
    """accelerate puts a forward of its own on the instance: it must still run."""
    module = nn.Linear(D, 7, dtype=torch.float64)
    calls: list[int] = []
    original = module.forward

    def hooked(x: Tensor) -> Tensor:
        calls.append(len(x))
        return original(x)

    module.forward = hooked  # type: ignore[method-assign]
    check(ruled(module, "linear", Mode(batch=B, channels=CHANNELS)), module, original)
    assert calls[0] == CHANNELS * B


def test_learned_positions_enter_the_model_alone() -> None:
    table = nn.Embedding(9, D, dtype=torch.float64)
    for ids in (torch.arange(T)[None], torch.arange(T).repeat(CHANNELS * B, 1)):
        out = ruled(table, "position_table", Mode(batch=B, channels=CHANNELS))(ids)
        assert out.shape == (CHANNELS * B, T, D)
        assert torch.equal(out[:B], table(torch.arange(T)).expand(B, T, D))
        assert not out[B:].any()
    alone = ruled(table, "position_table", Mode(batch=B))(torch.arange(T)[None])
    assert torch.equal(alone, table(torch.arange(T))[None])


def test_one_block_is_the_module_itself() -> None:
    for module in NORMS.values():
        x = noise(1, B, T, D)
        for graph in ("none", "true"):
            assert torch.equal(ruled(module, "norm", Mode(batch=B, graph=graph))(x), module(x))


@pytest.mark.parametrize("graph", ["surrogate", "true"])
def test_second_order_of_norm_and_gate(graph: str) -> None:
    """What the gradient of a tangent sees of block 0: nothing through constants (surrogate), everything (true)."""
    norm = NORMS["layer"]
    mlp = Gated("gate first")
    mode = Mode(batch=1, channels=2, graph=graph)
    norm_twin = ruled(norm, "norm", mode)
    gated_twin = ruled(mlp, "gated_mlp", mode)
    base, tangent, g = noise(1, 1, 1, D), noise(2, 1, 1, D), noise(3, 1, 1, D)
    for twin, sees in ((norm_twin, graph == "true"), (gated_twin, True)):
        leaf = base.clone().requires_grad_(True)
        out = twin(torch.cat([leaf, tangent]))
        (gradient,) = torch.autograd.grad((g * out[1]).sum(), leaf, allow_unused=True, materialize_grads=True)
        assert bool(gradient.any()) == sees
        if graph == "true":
            step, way = 1e-6, noise(4, 1, 1, D)
            ends = [(g * twin(torch.cat([base + s * step * way, tangent]))[1]).sum().detach() for s in (1, -1)]
            assert float(ends[0] - ends[1]) / (2 * step) == pytest.approx(float((gradient * way).sum()), abs=1e-8)
    if graph == "surrogate":  # value of block 0: halved through the product, 1/std constant
        leaf = base.clone().requires_grad_(True)
        (got,) = torch.autograd.grad((g * gated_twin(torch.cat([leaf, tangent]))[0]).sum(), leaf)
        again = base.clone().requires_grad_(True)
        (want,) = torch.autograd.grad((g * mlp.by_rule(again)).sum(), again)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_quick_slope_is_slope() -> None:
    z = torch.cat([noise(1, 50), torch.tensor([0.0, -EPS, 1e-12, -1e-12], dtype=torch.float64)])
    value = functional.silu(z)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        got = _quick_slope(z.to(dtype), value.to(dtype))
        assert torch.equal(got, slope(z.to(dtype), value.to(dtype)).to(dtype))
    assert torch.isfinite(_quick_slope(torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.float16))).all()


@pytest.mark.parametrize("composite", [GRADIENT_INPUT, RELEASED_AUDIO], ids=lambda c: c.name)
def test_a_composite_without_twins_is_refused(composite: Any) -> None:
    with pytest.raises(UnknownKindError, match="no forward mode") as caught:
        JvpRules(fresh("llava"), Mode(), DualCache(1), composite)
    assert "exact mode" in caught.value.hint


def test_a_fused_gate_of_another_formula_is_refused() -> None:
    class Odd(Gated):
        def forward(self, x: Tensor) -> Tensor:
            gate, up = self.halves(x)
            return self.down_proj(self.act_fn(gate) * (up + 1))

    with pytest.raises(UnknownKindError, match="does not compute"):
        gated_spec(Odd("fused, gate first"))


@pytest.mark.parametrize("composite", [ATTN_LRP, CP_LRP], ids=lambda c: c.name)
def test_twins_come_and_go(composite: Any) -> None:
    adapter = fresh("qwen2_5_vl")
    before = snapshot(adapter.model)
    mode = Mode()
    twins = JvpRules(adapter, mode, DualCache(8), composite)
    embeds = noise(1, 1, 2, adapter.traits.hidden).float()
    with twins.attached():
        assert snapshot(adapter.model) != before
        with torch.no_grad():
            inside = adapter.decoder(inputs_embeds=embeds).last_hidden_state
    assert snapshot(adapter.model) == before
    with torch.no_grad():
        torch.testing.assert_close(inside, adapter.decoder(inputs_embeds=embeds).last_hidden_state, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="planted"), twins.attached():
        raise ValueError("planted")
    assert snapshot(adapter.model) == before
    with pytest.raises(HookError, match="did not bind"), twins.attached():
        pass
    assert snapshot(adapter.model) == before


def test_biases_outside_the_layers_have_rules_too() -> None:
    adapter: Adapter = fresh("blip2")
    rules = JvpRules(adapter, Mode(), DualCache(1))
    with rules.attached():
        changed = {n for n, m in adapter.decoder.named_modules() if "forward" in vars(m)}
        with torch.no_grad():  # else attention is missed
            adapter.decoder(inputs_embeds=torch.zeros(1, 2, adapter.traits.hidden))
    assert {"embed_positions", "final_layer_norm", "layers.0.fc1", "layers.0.activation_fn"} <= changed
