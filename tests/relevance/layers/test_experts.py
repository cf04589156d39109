"""Mixtures of experts: told by shapes and probing, rules and twins against a token-by-token slow twin, routing constant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError
from limelight.relevance.attachment import attached
from limelight.relevance.attribute import attribute
from limelight.relevance.classify import classify_modules
from limelight.relevance.composites import ATTN_LRP
from limelight.relevance.layers.experts import ExpertsSpec, experts_spec
from limelight.relevance.mode import Mode
from tests.relevance.layers.helpers import backward, noise, ruled
from tests.relevance.layers.test_norm import ScaledFirst
from tests.slow_twins import experts as twin
from tests.tiny import built, fresh
from tests.zoo import ZOO

E, N, D, WIDTH, K = 5, 6, 8, 12, 2


class Stacked(nn.Module):
    """Experts as transformers keeps them, in any of the layouts."""

    def __init__(self, order: str = "gate, up", transposed: bool = False, act: nn.Module | None = None) -> None:
        super().__init__()
        self.order, self.transposed, self.act = order, transposed, act or nn.SiLU()
        fused, down = noise(1, E, 2 * WIDTH, D) / D**0.5, noise(2, E, D, WIDTH) / WIDTH**0.5
        self.into = nn.Parameter(fused.mT.contiguous() if transposed else fused)
        self.out = nn.Parameter(down.mT.contiguous() if transposed else down)

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        if self.order == "interleaved":
            return h[..., ::2], h[..., 1::2]
        a, b = h.chunk(2, dim=-1)
        return (a, b) if self.order == "gate, up" else (b, a)

    def expert(self, e: int) -> tuple[Tensor, Tensor]:
        into, out = self.into[e], self.out[e]
        return (into.T, out.T) if self.transposed else (into, out)

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(E):
            row, slot = torch.where(index == e)
            into, out = self.expert(e)
            gate, up = self.split(x[row] @ into.T)
            y = self.after((self.act(gate) * up) @ out.T)
            total.index_add_(0, row, y * weights[row, slot, None])
        return total

    def after(self, y: Tensor) -> Tensor:
        return y

    def listed(self) -> list[twin.Expert]:
        found = []
        for e in range(E):
            into, out = (m.detach() for m in self.expert(e))
            gate, up = self.split(into.T)
            found.append((gate.T, up.T, out))
        return found


class Normed(Stacked):
    """A norm that scales first behind every expert (Muse Spark)."""

    def __init__(self) -> None:
        super().__init__()
        self.post_expert_norm = ScaledFirst()

    def after(self, y: Tensor) -> Tensor:
        return self.post_expert_norm(y)

    def held(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Slowly, with the rules as detached factors; the value is that of forward."""
        rows = []
        norm = self.post_expert_norm
        for n in range(len(x)):
            total = torch.zeros(D, dtype=x.dtype)
            for e, w in zip(index[n].tolist(), weights[n], strict=True):
                into, out = self.expert(e)
                gate, up = self.split(x[n] @ into.T)
                ruled = gate * (self.act(gate) / (gate + twin.EPS)).detach()
                product = (ruled + (self.act(gate) - ruled).detach()) * up
                y = (out @ (product / 2 + (product / 2).detach())) * (1 + norm.weight)
                total = total + w.detach() * y / (y.detach().square().mean() + norm.eps).sqrt()
            rows.append(total)
        return torch.stack(rows)


class Sorted(Stacked):
    """Llama4's way: every expert's input in turn, scaled already."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        rows = x.view(E, -1, D)
        gate, up = torch.bmm(rows, self.into).chunk(2, dim=-1)
        return torch.bmm(up * self.act(gate), self.out).view(-1, D)


class Clamped(Stacked):
    """Looks like a gated product until it is large."""

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = super().split(h)
        return gate, up.clamp(-4, 4)


def routing(seed: int = 3) -> tuple[Tensor, Tensor]:
    index = torch.stack([torch.randperm(E, generator=torch.Generator().manual_seed(seed + n))[:K] for n in range(N)])
    return index, noise(seed, N, K).abs()


def spec_of(module: Stacked) -> ExpertsSpec:
    spec = experts_spec(module, module.act)
    assert spec is not None
    return spec


LAYOUTS = [(o, t) for o in ("gate, up", "up, gate", "interleaved") for t in (False, True)]
layouts = pytest.mark.parametrize(("order", "transposed"), LAYOUTS)


@layouts
def test_the_layout_is_found_by_probing(order: str, transposed: bool) -> None:
    spec = spec_of(Stacked(order, transposed))
    assert (spec.fused, spec.down, spec.order, spec.transposed, spec.sorted) == (
        "into",
        "out",
        order,
        transposed,
        False,
    )


def test_sorted_experts_and_similar_modules() -> None:
    module = Sorted(transposed=True)
    assert spec_of(module).sorted
    assert experts_spec(Clamped(), nn.SiLU()) is None
    assert experts_spec(Stacked(), nn.ReLU()) is None
    assert experts_spec(Stacked(), None) is None


@layouts
@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU()])
def test_relevance_is_the_slow_twins(order: str, transposed: bool, act: nn.Module) -> None:
    module = Stacked(order, transposed, act)
    x, r = noise(7, N, D).requires_grad_(True), noise(8, N, D)
    index, weights = routing()
    out = ruled(module, "experts", backward())(x, index, weights.requires_grad_(True))
    assert torch.equal(out, module(x, index, weights))
    want = twin.relevance(x.detach(), module.listed(), index, weights.detach(), act, r)
    got, through = torch.autograd.grad((out * (r / out).detach()).sum(), [x, weights], allow_unused=True)
    assert through is None  # constants
    torch.testing.assert_close(got * x.detach(), want, atol=1e-9, rtol=1e-9)


def test_the_second_order_is_that_of_separate_gated_products() -> None:
    """The halves sit at the product, so a backward through the backward meets them where a plain MLP's would."""
    from limelight.relevance import rules

    module = Stacked()
    index, weights = routing()
    rule = ruled(module, "experts", backward())

    def separate(x: Tensor) -> Tensor:
        rows = []
        for n in range(N):
            total = torch.zeros(D, dtype=torch.float64)
            for e, w in zip(index[n].tolist(), weights[n], strict=True):
                gate, up, down = module.listed()[e]
                z = gate @ x[n]
                product = rules.identity(z, nn.functional.silu(z)) * (up @ x[n])
                total = total + w * (down @ rules.uniform(product, 2))
            rows.append(total)
        return torch.stack(rows)

    found = []
    for forward in (lambda x: rule(x, index, weights), separate):
        x = noise(7, N, D).requires_grad_(True)
        (first,) = torch.autograd.grad((forward(x) * noise(8, N, D)).sum(), x, create_graph=True)
        found.append((first, torch.autograd.grad((first * noise(9, N, D)).sum(), x)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@layouts
@pytest.mark.parametrize("graph", ["none", "surrogate", "true"])
def test_tangents_are_the_slow_twins(order: str, transposed: bool, graph: str) -> None:
    module = Stacked(order, transposed)
    channels = 3
    x = noise(5, channels, N, D)
    index, weights = routing()
    mode = Mode(batch=1, channels=channels, graph=graph)
    with torch.set_grad_enabled(graph != "none"):
        out = ruled(module, "experts", mode)(
            x.reshape(-1, D), index.repeat(channels, 1), weights.repeat(channels, 1)
        ).reshape(x.shape)
    torch.testing.assert_close(out[0], module(x[0], index, weights), atol=1e-12, rtol=0)
    for c in range(1, channels):
        want = twin.tangent(x[0], x[c], module.listed(), index, weights, nn.functional.silu)
        torch.testing.assert_close(out[c].detach(), want, atol=1e-11, rtol=0)


def test_sorted_experts_keep_the_blocks_inside_each_expert() -> None:
    module, channels = Sorted(transposed=True), 3
    x = noise(5, E, channels, N, D)
    mode = Mode(batch=1, channels=channels)
    with torch.no_grad():
        out = ruled(module, "experts", mode)(x.reshape(-1, D)).reshape(x.shape)
        torch.testing.assert_close(out[:, 0], module(x[:, 0].reshape(-1, D)).reshape(E, N, D), atol=1e-12, rtol=0)
    one = torch.ones(N, 1, dtype=torch.float64)
    for e in range(E):
        for c in range(1, channels):
            chosen = torch.full((N, 1), e)
            want = twin.tangent(x[e, 0], x[e, c], module.listed(), chosen, one, nn.functional.silu)
            torch.testing.assert_close(out[e, c], want, atol=1e-11, rtol=0)


@pytest.mark.parametrize("graph", ["none", "surrogate", "true"])
def test_a_norm_behind_every_expert(graph: str) -> None:
    module, (index, weights) = Normed(), routing()
    spec = spec_of(module)
    assert spec.after is not None and spec.after.first and spec.norm is module.post_expert_norm
    x = noise(7, N, D).requires_grad_(True)
    out = ruled(module, "experts", backward())(x, index, weights)
    torch.testing.assert_close(out, module(x, index, weights))
    want = module.held(x, index, weights)
    torch.testing.assert_close(want, out)
    r, t = noise(8, N, D), noise(9, 2, N, D)
    got, slow = (torch.autograd.grad((y * r).sum(), x)[0] for y in (out, want))
    torch.testing.assert_close(got, slow, atol=1e-11, rtol=1e-11)
    mode = Mode(batch=1, channels=3, graph=graph)
    rows = torch.cat([x[None], t])
    with torch.set_grad_enabled(graph != "none"):
        dual = ruled(module, "experts", mode)(rows.reshape(-1, D), index.repeat(3, 1), weights.repeat(3, 1))
    dual = dual.reshape(rows.shape)
    torch.testing.assert_close(dual[0], module(x, index, weights))
    jacobian = torch.autograd.functional.jacobian(lambda y: module.held(y, index, weights), x.detach())
    torch.testing.assert_close(dual[1:].detach(), torch.einsum("ndme,cme->cnd", jacobian, t), atol=1e-11, rtol=1e-11)
    if graph == "true":
        value = torch.autograd.grad((module(x, index, weights) * r).sum(), x)[0]
        (own,) = torch.autograd.grad((dual[0] * r).sum(), x, retain_graph=True)
        torch.testing.assert_close(own, value, atol=1e-11, rtol=1e-11)


def test_experts_of_an_unknown_gate_raise() -> None:
    adapter = fresh("glm4v_moe")
    inputs = ZOO["glm4v_moe"].inputs(adapter.model)
    attribute(adapter, inputs)
    experts = next(s.module for s in classify_modules(adapter.decoder) if s.kind == "experts")

    class Squared(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.relu(x).square() + x.mean()  # not elementwise

    experts.act_fn = Squared()
    with pytest.raises(UnknownKindError) as caught:
        attribute(adapter, inputs)
    assert "experts" in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_any_of_transformers_ways_to_run_experts(implementation: str) -> None:
    """The value is that way's own, bit for bit; the relevance does not depend on it."""
    adapter, reference = fresh("glm4v_moe"), built("glm4v_moe")
    adapter.model.set_experts_implementation(implementation)
    inputs: Any = ZOO["glm4v_moe"].inputs(adapter.model)
    call = adapter.capture(inputs)
    with torch.no_grad():
        want = adapter.model(**inputs).logits
    with torch.enable_grad(), attached(adapter, ATTN_LRP):
        got = adapter.logits(adapter.hidden(call, call.embeds.clone().requires_grad_(True)))
    assert torch.equal(got, want)
    ours, theirs = (attribute(a, inputs, 7).scores for a in (adapter, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


class Ungated(Stacked):
    """Nemotron-H's way: down(act(up(x))), the activation no gate."""

    def __init__(self) -> None:
        super().__init__(act=nn.GELU())
        self.into = nn.Parameter(self.into[:, :WIDTH].clone())

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(E):
            row, slot = torch.where(index == e)
            total.index_add_(0, row, self.act(x[row] @ self.into[e].T) @ self.out[e].T * weights[row, slot, None])
        return total


def test_experts_without_a_gate_pass_their_activation_by_the_identity_rule() -> None:
    """Under the rule every token meets one matrix: ``sum_k w_k out_e diag(act(z) / (z + eps)) into_e``."""
    module = Ungated()
    spec = spec_of(module)
    assert spec.order == "no gate"
    x, index, weights = noise(7, N, D), *routing()
    t, w = noise(8, N, D), noise(9, N, D)
    matrices = torch.zeros(N, D, D, dtype=torch.float64)
    for n in range(N):
        for k in range(K):
            into, out = module.into[index[n, k]], module.out[index[n, k]]
            z = into @ x[n]
            matrices[n] += (weights[n, k] * out @ torch.diag(module.act(z) / (z + 1e-10)) @ into).detach()
    leaf = x.clone().requires_grad_(True)
    value = ruled(module, "experts", backward())(leaf, index, weights)
    assert torch.equal(value, module(x, index, weights))
    (gradient,) = torch.autograd.grad((value * w).sum(), leaf)
    torch.testing.assert_close(gradient, torch.einsum("no,noi->ni", w, matrices), atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        rows = ruled(module, "experts", Mode(channels=2))(
            torch.cat([x, t]), torch.cat([index, index]), torch.cat([weights, weights])
        )
    torch.testing.assert_close(rows[N:], torch.einsum("noi,ni->no", matrices, t), atol=1e-10, rtol=1e-10)
