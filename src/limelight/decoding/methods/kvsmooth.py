"""KVSmooth: every answer token's keys and values are averaged with those before it, more so where it attends to everything.

Source: Jiang et al., "KVSmooth: Mitigating Hallucination in Multi-modal Large Language Models through Key-Value
Smoothing", CVPR 2026 (arXiv 2602.04268). No released code was found and the paper's text was not at hand: formulas,
settings and layers are those of published summaries of it.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.compat import DynamicLayer, DynamicSlidingWindowLayer
from limelight.decoding.contrastive import check_count, check_layer_range, check_range
from limelight.decoding.generation_options import refuse
from limelight.decoding.instruments import DecoderHook, chosen_layers, hooked_attention, refuse_cross_attention
from limelight.decoding.intervention import InterventionSession, wide
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter

PUBLISHED = (3, 30)  # of 32 layers, both included: all but the first three and the last


@dataclass(frozen=True)
class Kvsmooth(Method):
    """``K_t <- (1 - w) K_t + w K_{t-1}``, the same for V, in the cache, once token t's own forward is done.

    ``w`` is the rank of the layer's attention entropy (of the token's query, mean over heads) among the last ``window``
    ones, as a share of ``window``, clipped to ``strength +- radius``. ``K_{t-1}`` is what the cache holds: smoothed
    itself, so that the cache holds moving averages. The first generated token is averaged with the prompt's last position.

    Args:
        strength: the middle of w's range, in [0, 1]; with ``radius=0`` every token is averaged with this weight, and 0 is
            then the unchanged model.
        radius: how far w may be from ``strength``; w stays in [0, 1].
        window: number of entropies, the token's own included, that it is ranked among.
        start, stop: layers (from 0) ``start <= layer < stop``; None: 3 and 31 of LLaVA-7B's 32, in proportion for other
            depths.

    The first two tokens are the unchanged model's, so a one-word answer does not change. Works without media, too.

    Differs from the paper as its summaries have it: nothing known. What they leave open is chosen as follows: keys are
    smoothed as cached (after the rotation), the token's own forward sees its own keys and values, and while fewer than
    ``window`` tokens exist, the rank is a share of ``window``, so that w is at its lower end. The paper uses strength 0.9
    for LLaVA-1.5, 0.7 for InstructBLIP, 0.5 for MiniGPT-4.
    """

    name = "kvsmooth"
    capabilities = Capabilities(batches=True, needs_media=False, continues_cache=True, beams=True)

    strength: float = 0.9
    radius: float = 0.2
    window: int = 15
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        check_range("kvsmooth", "strength", self.strength, 0.0, 1.0, hint="the paper: 0.9 for LLaVA-1.5")
        check_range("kvsmooth", "radius", self.radius, 0.0, 1.0, hint="the paper: 0.2")
        check_count("kvsmooth", "window", self.window, 1, hint="the paper: 15")
        check_layer_range("kvsmooth", self.start, self.stop, hint="the paper: 3 and 31")

    def session(self, context: GenerationContext) -> KvsmoothSession:
        """Raises SettingError on layers that the model does not have, UnsupportedError on a cache other than the default or
        a cross-attention model."""
        return KvsmoothSession(self, context)


class KvsmoothSession(InterventionSession):
    def __init__(self, strategy: Kvsmooth, context: GenerationContext) -> None:
        refuse_cross_attention(context.adapter, "kvsmooth", "the attention between positions of one sequence")
        refuse(context, "kvsmooth", "cache_implementation")
        super().__init__(context, "kvsmooth", recompute=False)
        self.strategy = strategy
        self.low, self.high = (
            max(0.0, strategy.strength - strategy.radius),
            min(1.0, strategy.strength + strategy.radius),
        )
        self.layers = chosen_layers(context.adapter, PUBLISHED, strategy.start, strategy.stop, "kvsmooth")
        self.watch = RowEntropy(context.adapter, self.layers)
        self.seen: dict[int, deque[Tensor]] = {i: deque(maxlen=strategy.window) for i in self.layers}

    def acts(self) -> bool:
        return self.high > 0 and self.count > 1  # one token's keys and values have been smoothed before

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        unchanged = prefill or self.high == 0
        return nullcontext() if unchanged else hooked_attention(self.context.adapter, self.watch, self.layers)

    def after(self) -> None:
        if self.count == 0 or self.high == 0:
            return
        for layer in sorted(self.layers):
            entropies = self.seen[layer]
            entropies.append(self.watch.entropy[layer])
            weight = rank(entropies, self.strategy.window).clamp(self.low, self.high)
            smooth(layer_cache(self.main.cache, layer), weight)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        for entropies in self.seen.values():
            kept = [e[rows] for e in entropies]
            entropies.clear()
            entropies.extend(kept)


class RowEntropy(DecoderHook):
    """Records the entropy ``[B]`` of the last query's attention, mean over heads."""

    def __init__(self, adapter: Adapter, layers: set[int]) -> None:
        super().__init__(adapter)
        self.layers = layers
        self.entropy: dict[int, Tensor] = {}

    def out(self, layer: int, out: Tensor, weights: Tensor) -> Tensor:
        if layer in self.layers and self.inside:
            p = wide(weights[..., -1, :])
            self.entropy[layer] = -torch.special.xlogy(p, p).sum(-1).mean(-1)
        return out


def rank(entropies: deque[Tensor], window: int) -> Tensor:
    """Return how many of ``entropies`` [B] are below the last one, as a share ``[B]`` of ``window``."""
    return (torch.stack(list(entropies)) < entropies[-1]).to(entropies[-1].dtype).sum(0) / window


def layer_cache(cache: Any, layer: int) -> Any:
    """Return the cache of one layer.

    Raises:
        UnsupportedError: it is not a plain list of keys and values.
    """
    layers = getattr(cache, "layers", ())
    found = layers[layer] if layer < len(layers) else None
    if type(found) not in (DynamicLayer, DynamicSlidingWindowLayer):
        kind = type(cache if found is None else found).__name__
        raise UnsupportedError(
            f"kvsmooth changes cached keys and values, and cannot in a {kind}", hint="use the default cache"
        )
    return found


def smooth(held: Any, weight: Tensor) -> None:
    """Average the last position's keys and values with the one before it, in place; ``weight`` [B]."""
    for states in (held.keys, held.values):
        if states.shape[-2] > 1:
            w = weight.to(states.dtype)[:, None, None]
            states[..., -1, :] = (1 - w) * states[..., -1, :] + w * states[..., -2, :]


kvsmooth = Kvsmooth
STRATEGIES = {"kvsmooth": Kvsmooth}
