"""Relevance of rotary positions (PA-LRP): the part of a rotated query's or key's relevance that is due to its position.

A rotated query (or key) is a product of two factors: the projected vector, and the cosines and sines of its position. By the
uniform rule for products (AttnLRP, proposition 3.3) each factor gets half, in every layer; the halves of the positions are
summed over layers and heads and added to the relevance at their positions:

    R_i = sum_d x_id df/dx_id + sum_layers (q_i . df/dq_i + k_i . df/dk_i) / 2       (over the dimensions that rotate)

Conservation: at every rotation, position and content together get the relevance of the rotated vector. For one layer the sum
over positions is AttnLRP's; with more layers, less relevance reaches the lower softmaxes, which absorb part of it in AttnLRP.
Source: Bakish, Zimerman, Chefer and Wolf, "Revisiting LRP: Positional Attribution as the Missing Ingredient for Transformer
Explainability" (PA-LRP), arXiv 2506.02138, the rule for rotary positions.
Differs from the released code, which divides both parts by their largest entries and takes absolute values of the second.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import AttentionHook, attention_hooks
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance import rules
from limelight.relevance.attachment import facts
from limelight.relevance.mode import Divisors

STEP = 31  # by how much positions are shifted to detect rotations
_INSTEAD = "use attnlrp, which has no part for positions"


Rotations = Mapping[int, tuple[Tensor, Tensor]]  # layer -> dimensions of query and key heads that rotate, bool [d] each


class PositionHook(AttentionHook):
    """Halves the gradient through the rotating dimensions and assigns the other half to ``positions``.

    Runs after the composite's own rule, whose divisors have not been applied to its output yet.

    Attributes:
        positions: ones ``[B, T]``, a leaf; its gradient is the positions' relevance.
    """

    def __init__(self, adapter: Adapter, rotations: Rotations, divisors: Divisors, rows: int, length: int) -> None:
        self.only = frozenset(id(m) for m in adapter.attention_layers.values())
        self.rotations, self.divisors = rotations, divisors
        device, dtype = adapter.device, torch.promote_types(adapter.model.dtype, torch.float32)
        self.positions = torch.ones(rows, length, device=device, dtype=dtype, requires_grad=True)

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned = self.rotations.get(layer)
        if turned is None or not torch.is_grad_enabled():
            return q, k, v
        a, b = (self._shared(x, m, n) for x, m, n in zip((q, k), turned, self.divisors[:2], strict=True))
        return a, b, v

    def _shared(self, x: Tensor, rotated: Tensor, divisor: int) -> Tensor:
        if divisor == 0 or not x.requires_grad:
            return x
        half = rotated.to(x.device, x.dtype) / 2
        own = self.positions[:, None, :, None].to(x.device, x.dtype)
        return rules.gradient_of(x * (1 - half) + own * (x.detach() * half / divisor), x)


def position_hook(adapter: Adapter, call: DecoderCall, divisors: Divisors) -> PositionHook:
    """Create the hook for one captured call.

    Raises:
        UnsupportedError: the decoder's positions are not rotary.
    """
    return PositionHook(adapter, rotations_of(adapter, call), divisors, int(call.embeds.shape[0]), call.length)


def rotations_of(adapter: Adapter, call: DecoderCall) -> Rotations:
    """Detect which dimensions rotate, once per model, by shifting all positions by one: attention, and therefore the hidden
    states, stay the same, so any change in queries and keys is due to their rotation.

    Raises:
        UnsupportedError: the decoder takes no position ids, has learned positions, reads other states by cross-attention, or
            no query rotates.
    """
    known: dict[str, Rotations] = facts(adapter)
    if "rotations" in known:
        return known["rotations"]
    name = type(adapter.decoder).__name__
    if call.front:
        raise UnsupportedError(f"{name} reads media by cross-attention, which does not rotate", hint=_INSTEAD)
    if "position_ids" not in inspect.signature(adapter.decoder.forward).parameters:
        raise UnsupportedError(f"expected {name} to take position_ids, which move its rotary positions", hint=_INSTEAD)
    piece = call.row(0).tail(min(4, call.length))
    given = piece.kwargs.get("position_ids")
    here = torch.arange(piece.length, device=piece.embeds.device)[None] if given is None else given
    before, after = (
        _seen(adapter, replace(piece, kwargs={**piece.kwargs, "position_ids": p})) for p in (here, here + STEP)
    )
    if any(_differ(before.values[i], after.values[i]) for i in before.values):
        raise UnsupportedError(
            f"expected values of {name} not to depend on their positions (learned position embeddings cause that)",
            hint=_INSTEAD,
        )
    layers = {n: (_rotated(name, before, after, n, 0), _rotated(name, before, after, n, 1)) for n in before.kept}
    if not any(bool(m.any()) for pair in layers.values() for m in pair):
        raise UnsupportedError(f"expected queries of {name} to rotate with their positions, none does", hint=_INSTEAD)
    return known.setdefault("rotations", layers)


class _Seen(AttentionHook):
    """Records queries and keys of every layer, and the number of dimensions per head that its cosines cover."""

    def __init__(self, adapter: Adapter) -> None:
        self.only = frozenset(id(m) for m in adapter.attention_layers.values())
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.values: dict[int, Tensor] = {}
        self.widths: dict[int, int] = {}

    def qkv(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.kept[layer], self.values[layer] = (q, k), v
        return q, k, v

    def told(self, layer: int, kwargs: Mapping[str, Any]) -> None:
        given = kwargs.get("position_embeddings")
        first = given[0] if isinstance(given, (tuple, list)) else given
        if isinstance(first, Tensor):
            self.widths[layer] = int(first.shape[-1]) * (2 if first.is_complex() else 1)


def _seen(adapter: Adapter, call: DecoderCall) -> _Seen:
    hook = _Seen(adapter)
    with ExitStack() as hooks:
        for layer, module in adapter.attention_layers.items():
            told = partial(hook.told, layer)
            handle = module.register_forward_pre_hook(lambda _, __, kwargs, told=told: told(kwargs), with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.enter_context(torch.no_grad())
        hooks.enter_context(attention_hooks(hook))
        adapter.hidden(call)
    return hook


def _rotated(name: str, before: _Seen, after: _Seen, layer: int, side: int) -> Tensor:
    """Return the rotating dimensions, bool ``[d]``. Slow rotations hardly change in one step, so if any dimension covered by
    the cosines changed, all of them count."""
    moved = _moved(before.kept[layer][side], after.kept[layer][side])
    if not bool(moved.any()):
        return moved
    dim, width = len(moved), before.widths.get(layer, len(moved))
    first = torch.arange(dim, device=moved.device) < width
    for mask in (first, first.flip(0)):
        if not bool((moved & ~mask).any()):
            return mask
    raise UnsupportedError(
        f"layer {layer} of {name} rotates dimensions {moved.nonzero()[:, 0].tolist()} of {dim}, expected {width} at one end",
        hint=_INSTEAD,
    )


def _moved(x: Tensor, y: Tensor) -> Tensor:
    """Return the dimensions, bool ``[d]``, in which any head at any position differs by more than rounding."""
    slack = 1e-3 if x.dtype in (torch.float32, torch.float64) else 3e-2
    return (y - x).abs().amax((0, 1, 2)) > slack * x.abs().amax()


def _differ(x: Tensor, y: Tensor) -> bool:
    return bool(_moved(x, y).any())
