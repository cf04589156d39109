"""MemVR: where a middle layer's prediction is uncertain, re-inject the image embeddings in the next layer's MLP.

Source: Zou et al., "Look Twice Before You Answer: Memory-Space Visual Retracing for Hallucination Mitigation in
Multimodal Large Language Models", ICML 2025 (arXiv 2410.03577); formulas as in the released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limelight.decoding.contrast_inputs import media_mask
from limelight.decoding.contrastive import check_range
from limelight.decoding.instruments import (
    check_layers,
    decoder_layers,
    first_input,
    in_proportion,
    mlp_of,
    post_hook,
    refuse_cross_attention,
    tensor_of,
)  # fmt: skip
from limelight.decoding.intervention import InterventionSession
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import SettingError
from limelight.relevance.layers.norm import final_norm

PUBLISHED = (6, 15)  # of 32 layers, both included: "5 < layer < 16" in the released code


@dataclass(frozen=True)
class Memvr(Method):
    """``FFN(x) <- (1 - r) FFN(x) + r c (x V^T) V`` in one layer of a forward, ``c`` matching the mean magnitudes.

    ``V`` are the media's merged embeddings. The layer is the one after the first whose prediction (final norm and head
    on its last position) is uncertain: the entropy of its top ten tokens, divided by log 10, exceeds ``threshold``.

    Args:
        ratio: r, in [0, 1]; 0 is the unchanged model.
        threshold: for the entropy, in [0, 1].
        start, stop: layers (from 0) ``start < layer < stop`` are tested; None: 5 and 16 of LLaMA-7B's 32 (so 6 to 15), in
            proportion for other depths. The last layer cannot be tested, as the injection is in the layer after it.

    Differs from the paper: nothing known.
    Differs from the released code (LLaVA-1.5, Qwen-VL, GLM-4V): decision and magnitudes are per batch row, without
    padding (there means over the batch and summed entropies); with several images all of them are injected, there only
    the last; the model is left unmodified. Its scripts set the ratio by benchmark: 0.12 for POPE, as here, 0.31 for
    CHAIR, 0.1 in the example. ``plain`` costs one more cached forward per token and is computed only if details are
    requested. ``intervened``: the image was injected in this token's forward.
    """

    name = "memvr"
    capabilities = Capabilities(batches=True, beams=True)

    ratio: float = 0.12
    threshold: float = 0.75
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        check_range("memvr", "ratio", self.ratio, 0.0, 1.0, hint="the released POPE script: 0.12")
        check_range("memvr", "threshold", self.threshold, 0.0, 1.0, hint="the paper: 0.75")
        if self.start is not None and self.stop is not None and self.stop <= self.start + 1:
            raise SettingError(
                f"memvr: no layer lies between start {self.start} and stop {self.stop}", hint="the paper: 5 and 16"
            )

    def tested(self, depth: int) -> range:
        """Return the indices of the layers whose entropy is tested, in a model of ``depth`` layers."""
        first, last = in_proportion(PUBLISHED, depth, beyond=1)
        return range(first if self.start is None else self.start + 1, last + 1 if self.stop is None else self.stop)

    def session(self, context: GenerationContext) -> MemvrSession:
        """Raises SettingError on layers the model lacks, UnsupportedError on a cross-attention model."""
        return MemvrSession(self, context)


class MemvrSession(InterventionSession):
    def __init__(self, strategy: Memvr, context: GenerationContext) -> None:
        adapter = context.adapter
        refuse_cross_attention(adapter, "memvr")
        super().__init__(context, "memvr", recompute=True)
        depth = len(decoder_layers(adapter))
        layers = strategy.tested(depth)
        check_layers(adapter, layers, "memvr", last=depth - 2, setting=f"start={strategy.start}, stop={strategy.stop}")
        self.retrace = Retrace(strategy, context, layers)

    def changed(self, *, prefill: bool) -> AbstractContextManager[Any]:
        return self.retrace.attached(prefill=prefill)

    def acted(self, rows: int) -> list[bool]:
        return self.retrace.fired.tolist()


class Retrace:
    """The hooks of one forward: on the tested layers, and on the MLPs that may be modified."""

    def __init__(self, strategy: Memvr, context: GenerationContext, layers: range) -> None:
        self.ratio, self.threshold, self.layers = strategy.ratio, strategy.threshold, layers
        self.adapter = context.adapter
        self.norm = final_norm(context.adapter)
        self.mlps: dict[int, nn.Module] = {i + 1: mlp_of(context.adapter, i + 1) for i in layers}
        self.places, self.mask = media_mask(context), context.mask
        self.memory: list[Tensor] = []
        self.fired = torch.zeros(context.ids.shape[0], dtype=torch.bool, device=context.ids.device)
        self.due: dict[int, Tensor] = {}
        self.real: Tensor | None = None

    @contextmanager
    def attached(self, *, prefill: bool) -> Iterator[None]:
        """Hook the forward inside the block; the hooks are always removed afterwards."""
        self.fired = torch.zeros_like(self.fired)
        self.due = {}
        self.real = self.mask if prefill else None
        with ExitStack() as stack:
            if prefill:
                stack.enter_context(first_input(self.adapter, self._remember))
            modules = decoder_layers(self.adapter)
            for i in self.layers if self.ratio > 0 else ():
                stack.enter_context(post_hook(modules[i], partial(self._test, i)))
                stack.enter_context(post_hook(self.mlps[i + 1], partial(self._inject, i + 1)))
            yield

    def _remember(self, embeds: Tensor) -> None:
        self.memory = [embeds[row, self.places[row]] for row in range(embeds.shape[0])]

    def _test(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        logits = self.adapter.logits(self.norm(tensor_of(output)[:, -1]))
        unsure = entropy(logits.to(torch.promote_types(logits.dtype, torch.float32))) > self.threshold
        due = unsure & ~self.fired
        if bool(due.any()):
            self.due[layer + 1] = due
            self.fired = self.fired | due

    def _inject(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        due = self.due.get(layer)
        if due is None:
            return None
        x = args[0] if args else kwargs["hidden_states"]
        out = output[0] if isinstance(output, tuple) else output
        mixed = out.clone().view(x.shape)  # experts may return [B * T, D]
        for row in due.nonzero()[:, 0].tolist():
            real = slice(None) if self.real is None else self.real[row]
            mixed[row, real] = injected(x[row, real], mixed[row, real], self.memory[row], self.ratio)
        mixed = mixed.view(out.shape)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


def entropy(logits: Tensor, top: int = 10) -> Tensor:
    """Return the entropy ``[B]`` of the renormalised ``top`` most likely tokens, divided by its maximum log(top)."""
    top = min(top, logits.shape[-1])
    s = torch.log_softmax(logits.topk(top, dim=-1).values, dim=-1)
    return -(s.exp() * s).sum(-1) / math.log(top)


def injected(x: Tensor, out: Tensor, memory: Tensor, ratio: float) -> Tensor:
    """Compute ``(1 - r) FFN(x) + r c (x V^T) V`` for one row: x, out ``[n, D]``, V ``[m, D]``.

    ``c = mean |FFN(x)| / mean |(x V^T) V|``.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    v = memory.to(x.device, wide)
    seen = (x.to(wide) @ v.T) @ v
    scale = out.to(wide).abs().mean() / seen.abs().mean().clamp_min(torch.finfo(wide).tiny)
    return ((1 - ratio) * out.to(wide) + ratio * scale * seen).to(out.dtype)


memvr = Memvr
STRATEGIES = {"memvr": Memvr}
