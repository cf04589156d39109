"""Exact-mode offsets combined with an attention that stores no ``[T, T]`` tensor for the second-order pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limelight.grounding.deltas import Deltas
from limelight.models.runtime.attention import AttentionCall, active_hooks, fit_mask, repeat_heads
from limelight.relevance.composites import Composite
from limelight.relevance.layers.attention import AttentionRule
from limelight.relevance.lean_attention import lean_attention
from limelight.relevance.rules import divided


class LeanDeltas(Deltas):
    """:class:`Deltas` that also apply the composite's attention rule, so that the whole call is one function.

    Used for float32 and wider models without soft-cap and sinks, where ``K + dK`` loses no precision, if no other hook is
    active. Other calls are left to the hooks of :class:`Deltas` and of the composite, which compute the same values.
    """

    def __init__(self, layers: Sequence[int], dtype: torch.dtype, composite: Composite) -> None:
        super().__init__(layers, dtype)
        self.divisors = composite.attention

    def attend(self, call: AttentionCall) -> tuple[Tensor, None] | None:
        q, k, v = call.query, call.key, call.value
        if call.softcap is not None or call.sinks is not None or q.dtype not in (torch.float32, torch.float64):
            return None
        if any(not isinstance(hook, (AttentionRule, LeanDeltas)) for hook in active_hooks()):
            return None
        self.qkv(call.layer, q, k, v)  # creates this layer's offsets at its first call
        q, k, v = (divided(x, n) for x, n in zip((q, k, v), self.divisors, strict=True))
        groups = q.shape[1] // k.shape[1]
        k, v = repeat_heads(k, groups), repeat_heads(v, groups)
        if call.layer in self.keys:  # layers may be spread over several devices
            k, v = k + self.keys[call.layer].to(k.device), v + self.values[call.layer].to(v.device)
        out = lean_attention(q, k, v, fit_mask(call.mask, k.shape[2]), call.scaling)
        return out.transpose(1, 2).contiguous(), None
