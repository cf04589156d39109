"""Mamba-2 (Dao and Gu, arXiv 2405.21060): ``h_t = exp(d_t A) h_{t-1} + d_t B_t x_t``, ``y_t = C_t h_t + D x_t``.

Rules: MambaLRP (Jafari et al., NeurIPS 2024, arXiv 2406.07592). The input-dependent parameters of the state space (step
d, B, C) are constants, so y is linear in x; identity rule for silu; half to each factor of the product with the gate
silu(z); the norm's 1/std is a constant. Relevance is conserved, except for the convolution's bias. The rule is the same
for all composites.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.relevance.blocks import activated, gated_product, normed
from limelight.relevance.layers._mixer import Mixer, State, activation, decays, masked, mixer_kind, norm_eps, scanned
from limelight.relevance.mode import Mode, blocks


class Mamba2(Mixer):
    def compute(
        self, mode: Mode, x: Tensor, state: State | None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, State]]:
        m, (rows, n, _) = self.module, x.shape
        x = masked(x, mask)
        wide = torch.promote_types(x.dtype, torch.float32)
        inner, single = m.intermediate_size, m.n_groups * m.ssm_state_size
        gate, mixed, step = torch.split(m.in_proj(x), [inner, self.conv.in_channels, m.num_heads], dim=-1)
        mixed, before, after = self.convolved(mode, mixed.transpose(1, 2), None if state is None else state[0])
        mixed = masked(activated(mode, activation(m.activation), mixed).transpose(1, 2), mask)
        v, into, out_of = torch.split(blocks(mixed.to(wide), mode.channels), [inner, single, single], dim=-1)
        into, out_of = (self._groups(mode.const(t[0])) for t in (into, out_of))  # [B, H, N, S]
        dt = functional.softplus(blocks(step, mode.channels)[0].to(wide) + m.dt_bias)
        dt = mode.const(dt.clamp(*m.time_step_limit)).transpose(1, 2)  # [B, H, N]
        g = dt * mode.const(-m.A_log.to(wide).exp())[:, None]
        v = v.reshape(*v.shape[:-1], m.num_heads, m.head_dim).transpose(2, 3)  # [1 + C, B, H, N, P]
        written = dt[..., None] * v
        h = (
            written.new_zeros(*v.shape[:3], into.shape[-1], v.shape[-1])
            if state is None
            else blocks(state[1], mode.channels)
        )

        def chunk(at: slice, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return _chunk(g[..., at], into[..., at, :], out_of[..., at, :], written[..., at, :], h)

        y, first, h = scanned(n, h, chunk)
        y = (y + m.D.to(wide)[:, None, None] * v).transpose(2, 3).reshape(*blocks(gate, mode.channels).shape)
        z = blocks(gate, mode.channels).to(wide)
        y = gated_product(mode, z, y, functional.silu(z[0]))
        y = normed(mode, y, norm_eps(m.norm), inner // m.norm.group_size) * m.norm.weight.to(wide)
        out: Tensor = m.out_proj(y.reshape(rows, n, -1).to(x.dtype))
        return out, ((before, first.flatten(0, 1)), (after, h.flatten(0, 1)))

    def _groups(self, t: Tensor) -> Tensor:
        m = self.module
        return (
            t.reshape(*t.shape[:-1], m.n_groups, -1).transpose(1, 2).repeat_interleave(m.num_heads // m.n_groups, dim=1)
        )


def _chunk(g: Tensor, into: Tensor, out_of: Tensor, written: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in parallel behind ``h`` [1 + C, B, H, S, P]: the outputs, and the states after N - 1 and N of them."""
    d, start = decays(g), g.cumsum(-1).exp()[..., None]

    def end(at: int) -> Tensor:
        if at == 0:
            return h
        new = (into[..., :at, :] * d[..., at - 1, :at, None]).mT @ written[..., :at, :]
        return start[..., at - 1 : at, :] * h + new

    n = g.shape[-1]
    return (out_of @ into.mT * d) @ written + start * (out_of @ h), end(n - 1), end(n)


def mamba2(module: Any, conv: nn.Conv1d) -> Mamba2 | None:
    """Match by parameters and one projection into gate, convolved channels and steps; verified by probing."""
    needed = ("in_proj", "out_proj", "norm", "A_log", "D", "dt_bias")
    sizes = (
        "intermediate_size", "n_groups", "ssm_state_size", "num_heads", "head_dim", "time_step_limit", "activation"
    )  # fmt: skip
    if not all(hasattr(module, n) for n in (*needed, *sizes)) or not hasattr(module.norm, "group_size"):
        return None
    width = module.intermediate_size + conv.in_channels + module.num_heads
    return Mamba2(module, conv) if int(module.in_proj.out_features) == width else None


KIND = mixer_kind("mamba2", mamba2)
