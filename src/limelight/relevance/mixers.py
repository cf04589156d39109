"""Token mixers without keys and values: gated delta nets, gated short convolutions, Mamba-2. Told by structure and probing.

One computation serves both directions. It runs over blocks of rows, the model first and its tangents behind it
(:class:`Mode`), over a whole prompt or token by token with a state; the backward rule is its block 0 with the rules in
the gradient. What the rules are stands in the mixers' own files:

    :mod:`limelight.relevance.mixer_delta`   gated delta rule (Qwen3-Next, Qwen3.5)
    :mod:`limelight.relevance.mixer_conv`    gated short convolution (LFM2)
    :mod:`limelight.relevance.mixer_mamba`   Mamba-2 (Nemotron-H)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limelight.errors import UnknownKindError, UnsupportedError
from limelight.relevance import rules
from limelight.relevance.dual_cache import DualCache
from limelight.relevance.dual_mode import Mode, block_rows
from limelight.relevance.mixer_conv import short_conv
from limelight.relevance.mixer_delta import delta_net
from limelight.relevance.mixer_mamba import mamba2
from limelight.relevance.mixer_parts import Divisors, Mixer
from limelight.relevance.probing import HINT, apart, require_finite, slack

_CACHES = ("cache_params", "past_key_values")


def mixer_spec(name: str, module: Any) -> Mixer | None:
    """The mixer a module is, or None where it does not look like one (it has no depthwise convolution of its own).

    Raises:
        UnknownKindError: it looks like one and computes something else.
        UnsupportedError: its weights are not there.
    """
    convs = [c for c in module.children() if isinstance(c, nn.Conv1d) and c.groups == c.in_channels == c.out_channels]
    if len(convs) != 1 or getattr(module, "layer_idx", None) is None:
        return None
    found = next(
        (m for m in (make(module, convs[0]) for make in (delta_net, mamba2, short_conv)) if m is not None), None
    )
    if found is None:
        return None
    if any(p.device.type == "meta" for p in module.parameters()):
        raise UnsupportedError(
            f"the weights of {name} ({found.kind}) are offloaded, and relevance reads some of them itself",
            hint="load the model with a device_map that keeps these layers on a device; greedy works as it is",
        )
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    x = torch.randn(2, 5, found.width, generator=torch.Generator().manual_seed(0)).to(parameter)
    with torch.no_grad():
        want = module(x)
        got, _ = found.run(Mode(batch=2), x, None, (1, 1, 1))
    require_finite(module, want)
    if not apart(got, want) <= slack(x.dtype, 1e-3, 5e-2):
        raise UnknownKindError(
            f"{name} ({type(module).__name__}) looks like a {found.kind} but computes something else", hint=HINT
        )
    return found


def mixer_rule(module: Any, mixer: Mixer, divisors: Divisors) -> Callable[..., Tensor]:
    """The module's own value, with the gradient of the mixer under its rules."""
    original = module.forward
    mode = Mode(graph="surrogate")

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not hidden_states.requires_grad:
            return original(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        with torch.no_grad():
            value = original(hidden_states, *args, **kwargs)
        mode.batch = hidden_states.shape[0]
        ruled, _ = mixer.run(mode, hidden_states, None, divisors, kwargs.get("attention_mask"))
        return rules.gradient_of(ruled.to(value.dtype), value)

    return forward


def mixer_twin(module: Any, mixer: Mixer, mode: Mode, cache: DualCache, divisors: Divisors) -> Callable[..., Tensor]:
    """The forward twin; its state (values and tangents) lives in the dual cache."""
    original, layer = module.forward, int(module.layer_idx)

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        length = hidden_states.shape[1]
        state = cache.recall(layer)
        if state is not None:
            state = tuple(t[: hidden_states.shape[0]] for t in state)
        out, states = mixer.run(mode, hidden_states, state, divisors, kwargs.get("attention_mask"))
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
    """The model's own forward inside: other modules' twins see one block."""
    channels, mode.channels = mode.channels, 1
    try:
        yield
    finally:
        mode.channels = channels
