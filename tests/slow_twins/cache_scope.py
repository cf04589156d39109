"""LIME in cache scope without a cache: the whole sequence in every forward, dense offsets, nothing shared with the library's dual code.

Two routes to relevance and its derivatives:

* :func:`dual`, on the hand-written Llama: value and tangent side by side, a formula a line, nothing held constant. Its
  derivative is that of the value ("true").
* :func:`phi` on transformers' modules: one backward for R, another through it. Under the rules this is the authors'
  second-order pass ("surrogate").

Offsets are seen by the last query only. :func:`optimise` is the loop over either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attachment import attached
from limelight.relevance.composites import Composite
from tests.slow_twins.llama import EPS, Weights, rotation

Layers = dict[int, Tensor]  # layer -> [heads, T, d]


def dual(weights: Weights, x: Tensor, c: Tensor, dk: Layers, dv: Layers) -> tuple[Tensor, Tensor]:
    """Logits ``[V]`` and Phi_c ``[V]`` of the last position of ``x [T, D]``, AttnLRP in forward mode."""
    length, dim = x.shape[0], weights.dim
    turns = torch.stack([rotation(t, dim, weights.theta, x.dtype) for t in range(length)])
    future = torch.ones(length, length).triu(1).bool()
    t = c[:, None] * x
    for number, layer in enumerate(weights.layers):
        h, ht = norm(x, t, layer.norm1, weights.eps)
        mixed, tangent = [], []
        for head in range(weights.heads):
            own = slice(head * dim, (head + 1) * dim)
            kv = head * weights.kv_heads // weights.heads
            shared = slice(kv * dim, (kv + 1) * dim)
            q, qt = ((turns @ (y @ layer.q[own].T)[..., None])[..., 0] for y in (h, ht))
            k, kt = ((turns @ (y @ layer.k[shared].T)[..., None])[..., 0] for y in (h, ht))
            v, vt = (y @ layer.v[shared].T for y in (h, ht))
            s, st = q @ k.T, qt @ k.T + q @ kt.T
            if number in dk:
                s = torch.cat([s[:-1], s[-1:] + q[-1:] @ dk[number][head].T])
                st = torch.cat([st[:-1], st[-1:] + qt[-1:] @ dk[number][head].T])
            a = torch.softmax((s / dim**0.5).masked_fill(future, float("-inf")), dim=-1)
            st = st / dim**0.5 / 4
            at = a * st - a * (a * st).sum(-1, keepdim=True)
            o, ot = a @ v, at @ v + a @ vt / 2
            if number in dv:
                o = torch.cat([o[:-1], o[-1:] + a[-1:] @ dv[number][head]])
                ot = torch.cat([ot[:-1], ot[-1:] + at[-1:] @ dv[number][head]])
            mixed.append(o)
            tangent.append(ot)
        x, t = x + torch.cat(mixed, -1) @ layer.o.T, t + torch.cat(tangent, -1) @ layer.o.T
        h, ht = norm(x, t, layer.norm2, weights.eps)
        g, gt, u, ut = h @ layer.gate.T, ht @ layer.gate.T, h @ layer.up.T, ht @ layer.up.T
        a = g / (1 + torch.exp(-g))
        x, t = x + (a * u) @ layer.down.T, t + ((gt * (a / (g + EPS)) * u + a * ut) / 2) @ layer.down.T
    h, ht = norm(x[-1], t[-1], weights.norm, weights.eps)
    return weights.head @ h, weights.head @ ht


def norm(x: Tensor, t: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return weight * x * scale, weight * t * scale


class LastQuery(AttentionHook):
    """Dense offsets ``[H, T, d]`` a layer (or ``[B, H, T, d]``), seen by the last query of a whole sequence."""

    def __init__(self, dk: Layers, dv: Layers) -> None:
        self.dk, self.dv = dk, dv

    def raw_scores(self, layer: int, scores: Tensor, q: Tensor) -> Tensor:
        if layer not in self.dk:
            return scores
        return torch.cat([scores[:, :, :-1], scores[:, :, -1:] + q[:, :, -1:] @ self.dk[layer].mT], dim=2)

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        if layer not in self.dv:
            return out
        return torch.cat([out[:, :, :-1], out[:, :, -1:] + weights[:, :, -1:] @ self.dv[layer]], dim=2)


def phi(
    adapter: Adapter, call: DecoderCall, composite: Composite, tokens: list[int], c: Tensor, dk: Layers, dv: Layers
) -> tuple[Tensor, Tensor]:
    """Logits ``[V]`` and ``[C, k]`` sums ``sum_i c_i R_i`` of some tokens, with the graph of the second order."""
    with torch.enable_grad(), attached(adapter, composite, LastQuery(dk, dv)):
        embeds = call.embeds.clone().requires_grad_(True)
        logits = adapter.logits(adapter.hidden(call, embeds)[:, -1:])[0, 0]
        columns = []
        for token in tokens:
            (gradient,) = torch.autograd.grad(logits[token], embeds, create_graph=True)
            columns.append(c.to(embeds.dtype) @ (gradient * embeds)[0].sum(-1))
        return logits, torch.stack(columns, dim=-1) if columns else torch.empty(0)


@dataclass(frozen=True)
class Rules:
    """What is optimised and how; the names are those of the settings."""

    updates: int
    lr: float
    objective: str
    rule: str
    heads: str
    kl_weight: float
    layers: tuple[int, ...]


@dataclass
class Trace:
    """One optimisation: a loss, KL and gradient ``[heads, T, d]`` a step; logits before and after."""

    plain: Tensor
    losses: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)
    gradients: list[tuple[Layers, Layers]] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


# (tokens, weights [C, T], dK, dV) -> logits [V], Phi [C, k]
Route = Callable[[list[int], Tensor, Layers, Layers], tuple[Tensor, Tensor]]


def two_best(logits: Tensor) -> list[int]:
    return [int(i) for i in logits.topk(2).indices]


def optimise(
    route: Route,
    c: Tensor,
    counts: tuple[int, int],
    shape: tuple[int, int, int, int],
    rules: Rules,
    choose: Callable[[Tensor], list[int]] = two_best,
) -> Trace:
    """The loop of one token.

    Args:
        c: weights ``[C, T]``: Phi_M, then what the objective needs (difference: +1 on the media, -1 on the text;
            normalised: the text; paper: its weights).
        counts: positions of media and text.
        shape: (query heads, kv heads, T, d).
        choose: the two best tokens of logits.
    """
    heads, kv, length, dim = shape
    own = heads if rules.heads == "query" else kv
    zero = torch.zeros(own, length, dim, dtype=torch.float64)
    offsets = {(kind, n): zero.clone() for kind in "kv" for n in rules.layers}
    first = {key: zero.clone() for key in offsets}
    second = {key: zero.clone() for key in offsets}
    trace: Trace | None = None

    def run(tokens: list[int], leaves: dict[tuple[str, int], Tensor]) -> tuple[Tensor, Tensor]:
        dk, dv = ({n: leaves[kind, n].repeat_interleave(heads // own, 0) for n in rules.layers} for kind in "kv")
        return route(tokens, c, dk, dv)

    for step in range(1, rules.updates + 1):
        leaves = {key: o.clone().requires_grad_(True) for key, o in offsets.items()}
        now = run([], leaves)[0].detach()
        if trace is None:
            trace = Trace(now)
        logits, parts = run(choose(now), leaves)
        loss = objective(rules.objective, parts, counts)
        p, reference = torch.softmax(logits, -1), torch.softmax(trace.plain, -1)
        kl = (reference * (reference.log() - p.log())).sum()
        trace.losses.append(float(loss.detach()))
        trace.kls.append(float(kl.detach()))
        gradients = torch.autograd.grad(loss + rules.kl_weight * kl, list(leaves.values()))
        by_key = dict(zip(leaves, gradients, strict=True))
        trace.gradients.append(tuple({n: by_key[kind, n] for n in rules.layers} for kind in "kv"))  # type: ignore[arg-type]
        entries = sum(g.numel() for g in gradients)
        size = float(torch.stack([g.pow(2).sum() for g in gradients]).sum().sqrt())
        for key, g in by_key.items():
            if rules.rule == "normalised":
                move = g * entries**0.5 / size
            else:
                first[key] = 0.9 * first[key] + 0.1 * g
                second[key] = 0.999 * second[key] + 0.001 * g * g
                move = first[key] / (1 - 0.9**step) / ((second[key] / (1 - 0.999**step)).sqrt() + 1e-8)
            offsets[key] = offsets[key] - rules.lr * move
    assert trace is not None
    trace.logits = run([], offsets)[0].detach()
    return trace


def objective(name: str, parts: Tensor, counts: tuple[int, int]) -> Tensor:
    """A loss of Phi ``[C, 2]`` of the two best tokens."""
    if name == "margin":
        return -(parts[0, 0] - parts[0, 1]).abs()
    if name == "difference":
        return -parts[1, 0]
    if name == "paper":
        return parts[1, 0]
    mean_m, mean_t = parts[0, 0] / counts[0], parts[1, 0] / counts[1]
    scale = mean_m.detach().abs() + mean_t.detach().abs()
    return -torch.log(1 / (1 + torch.exp(-(mean_m - mean_t) / scale)))
