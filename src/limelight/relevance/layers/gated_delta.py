"""Gated delta rule (Yang et al., Gated Delta Networks, arXiv 2412.06464), as computed in Qwen3-Next and Qwen3.5.

    q, k, v = silu(conv(W h)), q and k of unit length        S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T
    o_t = S_t^T q_t                                          y = W_o (rms(o) * silu(z))

Rules. Factors that only control how much is kept are constants, like routers and gates in AttnLRP and the state's
transition in MambaLRP (Jafari et al., arXiv 2406.07592): the decay a, the rate b, the transition a (I - b k k^T), the
norms of q and k. The remainder, ``o_t = sum_j q_t^T P_tj b_j k_j v_j^T``, is linear in q, in the written key and in v:
linear attention with weights ``q^T P k``. AttnLRP's rule for two successive matrix products assigns a quarter each to q
and k and a half to v (divisors 4, 4, 2); CP-LRP assigns everything to v (0, 0, 1), which is MambaLRP's rule. Both
conserve relevance. The norm's 1/std is a constant, the product with silu(z) is halved, and silu uses the identity rule.
Ours: no paper states a rule for the delta rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.relevance import rules
from limelight.relevance.blocks import activated, gated_product, normed
from limelight.relevance.layers._mixer import Mixer, State, activation, decays, masked, mixer_kind, norm_eps, scanned
from limelight.relevance.mode import Divisors, Mode, blocks

_LENGTH_EPS = 1e-6


@dataclass(frozen=True)
class Writes:
    """Block 0's terms of the recurrence: erased keys ``k`` [B, H, N, dk], rate and log-decay ``b, g`` [B, H, N]."""

    k: Tensor
    b: Tensor
    g: Tensor


class DeltaNet(Mixer):
    def compute(
        self, mode: Mode, x: Tensor, state: State | None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, State]]:
        m, (rows, n, _) = self.module, x.shape
        x = masked(x, mask)
        mixed, before, after = self.convolved(
            mode, m.in_proj_qkv(x).transpose(1, 2), None if state is None else state[0]
        )
        mixed = activated(mode, activation(m.activation), mixed).transpose(1, 2)
        q, k, v = self._heads(mode, mixed)
        wide = q.dtype
        b = blocks(m.in_proj_b(x), mode.channels)[0].sigmoid().to(wide)
        rate = functional.softplus(blocks(m.in_proj_a(x), mode.channels)[0].to(wide) + m.dt_bias)
        g = -m.A_log.to(wide).exp() * rate
        erase = Writes(mode.const(k[0]), *(mode.const(t).transpose(1, 2) for t in (b, g)))
        if mode.graph == "surrogate":
            q, k, v = (
                torch.cat([rules.divided(t[:1], d), t[1:]]) for t, d in zip((q, k, v), mode.divisors, strict=True)
            )

        def chunk(at: slice, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            part = Writes(erase.k[..., at, :], erase.b[..., at], erase.g[..., at])
            return _chunk(part, q[..., at, :], k[..., at, :], v[..., at, :], s, mode.divisors)

        empty = v.new_zeros(*v.shape[:3], q.shape[-1], v.shape[-1])
        o, first, last = scanned(n, empty if state is None else blocks(state[1], mode.channels), chunk)
        o = normed(mode, o.transpose(2, 3), norm_eps(m.norm)) * m.norm.weight.to(wide)  # [1 + C, B, N, H, dv]
        z = blocks(m.in_proj_z(x).reshape(rows, n, *o.shape[3:]), mode.channels).to(wide)
        out = gated_product(mode, z, o, activation(m.norm.activation)(z[0])).reshape(rows, n, -1)
        y: Tensor = m.out_proj(out.to(x.dtype))
        return y, ((before, first.flatten(0, 1)), (after, last.flatten(0, 1)))

    def _heads(self, mode: Mode, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return blocks ``[1 + C, B, H, N, d]`` of q, k (unit norm, q scaled) and v, wide, one q and k per value head."""
        m = self.module
        wide = torch.promote_types(mixed.dtype, torch.float32)
        parts = torch.split(blocks(mixed.to(wide), mode.channels), [m.key_dim, m.key_dim, m.value_dim], dim=-1)
        q, k, v = (
            t.reshape(*t.shape[:-1], -1, d).transpose(2, 3)
            for t, d in zip(parts, (m.head_k_dim, m.head_k_dim, m.head_v_dim), strict=True)
        )
        q, k = (t * mode.const(torch.rsqrt(t[0].pow(2).sum(-1, keepdim=True) + _LENGTH_EPS)) for t in (q, k))
        group = m.num_v_heads // m.num_k_heads
        q, k = (t.repeat_interleave(group, dim=2) for t in (q, k))
        return q * m.head_k_dim**-0.5, k, v


def _chunk(
    e: Writes, q: Tensor, k: Tensor, v: Tensor, state: Tensor, divisors: Divisors
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``S_t = D_t S_0 + sum_j D_tj (b_j k~_j v_j^T - k_j e_j^T)``, k~ the written and k the erasing key.

    The erased values: ``e = (1 + L)^-1 (b (k k~^T) D b v + b D k S_0)``, L the strict lower triangle of ``b k k^T D``.
    """
    d, b = decays(e.g), e.b[..., None]
    start = e.g.cumsum(-1).exp()[..., None]
    n = d.shape[-1]
    lower = (e.k @ e.k.mT * d * b).tril(-1)
    through_q, through_k, through_v = ((1 / p if p else 0.0) for p in divisors)

    def solved(seen: Tensor) -> Tensor:
        system = lower.expand(*seen.shape[:-2], n, n)
        out: Tensor = torch.linalg.solve_triangular(system, seen, upper=False, unitriangular=True)
        return out

    def met(key: Tensor, written: Tensor) -> Tensor:
        return (e.k @ key.mT * d * b).tril(-1) @ written

    def read(query: Tensor, key: Tensor, written: Tensor) -> Tensor:
        return (query @ key.mT * d) @ written

    def left(key: Tensor, written: Tensor, at: int) -> Tensor:
        return (key[..., :at, :] * d[..., at - 1, :at, None]).mT @ written[..., :at, :]

    first, moved = b * v[0], b * v[1:] * through_v
    gone = solved(met(k[0], first) + b * start * (e.k @ state[0]))
    lost = met(k[0], moved) + b * start * (e.k @ state[1:])
    out = read(q[0], k[0], first) - read(q[0], e.k, gone) + start * (q[0] @ state[0])
    rest = read(q[0], k[0], moved) + start * (q[0] @ state[1:])
    if through_k:
        lost = lost + met(k[1:], first) * through_k
        rest = rest + read(q[0], k[1:], first) * through_k
    lost = solved(lost)
    rest = rest - read(q[0], e.k, lost)
    if through_q:
        through = read(q[1:], k[0], first) - read(q[1:], e.k, gone) + start * (q[1:] @ state[0])
        rest = rest + through * through_q

    def end(at: int) -> Tensor:
        if at == 0:
            return state
        kept = start[..., at - 1 : at, :] * state
        own = left(k[0], first, at) - left(e.k, gone, at)
        tangents = left(k[0], moved, at) - left(e.k, lost, at)
        if through_k:
            tangents = tangents + left(k[1:], first, at) * through_k
        return kept + torch.cat([own[None], tangents])

    return torch.cat([out[None], rest]), end(n - 1), end(n)


def delta_net(module: Any, conv: nn.Conv1d) -> DeltaNet | None:
    """Match by projections, decay parameters and a gated norm; verified by probing."""
    needed = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "A_log", "dt_bias", "norm", "out_proj")
    sizes = ("key_dim", "value_dim", "head_k_dim", "head_v_dim", "num_k_heads", "num_v_heads", "activation")
    known = all(hasattr(module, n) for n in (*needed, *sizes)) and hasattr(module.norm, "activation")
    children = {n for n, _ in module.named_children()}
    return DeltaNet(module, conv) if known and len(children) == 7 else None


KIND = mixer_kind("gated_delta", delta_net)
