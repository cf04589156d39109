"""Shared parts of token mixers without keys and values: recognition, running, causal convolution, decays, chunking.

One computation is used in both directions. It works on blocks of rows, for a whole prompt or token by token with a state;
the backward rule is its block 0 with the rules applied to the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.relevance import rules
from limelight.relevance.kind import Attach, LayerKind, ModuleMatch, replaced
from limelight.relevance.mode import Mode, block_rows
from limelight.relevance.probing import HINT, agrees, is_linear, require_finite

State = tuple[Tensor, ...]
CHUNK = 64
_CACHES = ("cache_params", "past_key_values")


@dataclass(frozen=True)
class Mixer:
    """A token mixer over blocks of rows, with an output projection ``out_proj``; ``conv``: its depthwise convolution."""

    module: Any
    conv: nn.Conv1d

    @property
    def width(self) -> int:
        """Channels of its input."""
        return int(self.module.out_proj.out_features)

    def compute(
        self, mode: Mode, x: Tensor, state: State | None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[State, State]]:
        """Process ``x`` [(1 + C) * B, N, D] after ``state``; ``mask`` [(1 + C) * B, N] is 0 at padding.

        Returns the output, and the states after N - 1 and N positions.
        """
        raise NotImplementedError

    def convolved(self, mode: Mode, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the causal convolution to ``x`` [rows, C, N] after ``tail`` [rows, C, K - 1]; bias on block 0 only.

        Returns the output and the tails after N - 1 and N positions.
        """
        weight = self.conv.weight.to(torch.promote_types(self.conv.weight.dtype, x.dtype))
        reach = int(weight.shape[-1]) - 1
        before = x.new_zeros(*x.shape[:2], reach) if tail is None else tail.to(x.dtype)
        joined = torch.cat([before, x], dim=-1)
        out = functional.conv1d(joined.to(weight.dtype), weight, groups=weight.shape[0]).to(x.dtype)
        if self.conv.bias is not None:
            b = block_rows(out, mode.channels)
            out = torch.cat([out[:b] + self.conv.bias[:, None].to(out.dtype), out[b:]])
        n = x.shape[-1]
        return out, joined.narrow(-1, n - 1, reach), joined.narrow(-1, n, reach)


def mixer_kind(name: str, make: Callable[[Any, nn.Conv1d], Mixer | None]) -> LayerKind:
    """Build a mixer's kind. ``make``: (module, its depthwise convolution) -> the mixer its structure matches, or None."""

    def recognise(where: str, module: Any) -> Iterator[ModuleMatch]:
        convs = [
            c for c in module.children() if isinstance(c, nn.Conv1d) and c.groups == c.in_channels == c.out_channels
        ]
        if len(convs) != 1 or getattr(module, "layer_idx", None) is None:
            return
        found = make(module, convs[0])
        if found is None:
            return
        kind = name.replace("_", " ")
        if any(p.device.type == "meta" for p in module.parameters()):
            raise UnsupportedError(
                f"the weights of {where} ({kind}) are offloaded, but relevance reads some of them directly",
                hint="load the model with a device_map that keeps these layers on a device; greedy works without it",
            )
        parameter = next(p for p in module.parameters() if p.is_floating_point())
        x = torch.randn(2, 5, found.width, generator=torch.Generator().manual_seed(0)).to(parameter)
        with torch.no_grad():
            want = module(x)
            got, _ = found.compute(Mode(batch=2), x, None)
        require_finite(module, want)
        if not agrees(got, want):
            raise UnknownKindError(
                f"{where} ({type(module).__name__}) looks like a {kind} mixer but computes something different",
                hint=HINT,
            )
        inner = tuple(m for m in module.modules() if not is_linear(m))  # linears keep their own kind
        yield ModuleMatch(name, where, module, found, inner)

    return LayerKind(name, recognise, run, order=10)


def run(match: ModuleMatch, mode: Mode) -> Iterator[Attach]:
    make = _backward if mode.backward else _jvp
    yield replaced(match.module, make(match.module, match.spec, mode))


def _backward(module: Any, mixer: Mixer, mode: Mode) -> Callable[..., Tensor]:
    """Build a forward with the module's own value and the gradient of the mixer under its rules."""
    original = module.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if mode.plain(hidden_states):
            return original(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        with torch.no_grad():
            value = original(hidden_states, *args, **kwargs)
        ruled, _ = mixer.compute(mode, hidden_states, None, kwargs.get("attention_mask"))
        return rules.gradient_of(ruled.to(value.dtype), value)

    return forward


def _jvp(module: Any, mixer: Mixer, mode: Mode) -> Callable[..., Tensor]:
    """Build a forward for values and tangents; the state is stored in the dual cache."""
    original, layer, cache = module.forward, int(module.layer_idx), mode.cache
    if cache is None:
        raise UnsupportedError("a token mixer needs a cache for its state", hint="pass Mode(cache=DualCache(...))")

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        length = hidden_states.shape[1]
        state = cache.recall(layer)
        if state is not None:
            state = tuple(t[: hidden_states.shape[0]] for t in state)
        out, states = mixer.compute(mode, hidden_states, state, kwargs.get("attention_mask"))
        if mode.write:
            last = cache.length + length
            kept = {last - 1: states[0], last: states[1]} if length > 1 else {last: states[1]}
            cache.keep(layer, {n: s for n, s in kept.items() if n > 0})
        if state is None and mode.graph == "none" and hidden_states.dtype is not torch.float32:
            own = {k: v for k, v in kwargs.items() if k not in _CACHES}  # the model's own roundings
            b = block_rows(hidden_states, mode.channels)
            if own.get("attention_mask") is not None:
                own["attention_mask"] = own["attention_mask"][:b]
            with _alone(mode):
                value = original(hidden_states[:b], **own)
            out = torch.cat([value, out[b:]])
        return out

    return forward


@contextmanager
def _alone(mode: Mode) -> Iterator[None]:
    """Run the model's own forward inside the block: rules attached to other modules see a single block."""
    channels, mode.channels = mode.channels, 1
    try:
        yield
    finally:
        mode.channels = channels


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``x`` [rows, N, D] with zeros at padding."""
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    from limelight.compat import ACT2FN

    act: Callable[[Tensor], Tensor] = ACT2FN[name]
    return act


def norm_eps(norm: Any) -> float:
    """Return a norm's epsilon: ``variance_epsilon`` in transformers, ``eps`` in flash-linear-attention's fused norms."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


def decays(g: Tensor) -> Tensor:
    """Compute ``exp(g_{j+1} + ... + g_i)`` for j <= i, else 0: ``[..., N]`` -> ``[..., N, N]``."""
    total = g.cumsum(-1)
    n = g.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=g.device).triu(1)
    return (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()


def scanned(
    n: int, state: Tensor, chunk: Callable[[slice, Tensor], tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a recurrence over ``n`` positions from ``state``, in chunks within which positions are computed in parallel, with
    memory quadratic in their size.

    ``chunk``: (positions, state before them) -> outputs ``[..., N, d]``, and the states after N - 1 and N positions; the
    same is returned for all positions.
    """
    outs, before = [], state
    for at in range(0, n, CHUNK):
        out, before, state = chunk(slice(at, min(at + CHUNK, n)), state)
        outs.append(out)
    return torch.cat(outs, dim=-2), before, state
