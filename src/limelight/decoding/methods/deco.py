"""DeCo: add the logits of the middle layer that assigns the highest probability to a likely token.

Source: Wang et al., "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation", ICLR 2025 (arXiv
2410.11779); formula as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_count, check_range, details, first_and_last
from limelight.decoding.instruments import LogitLens, check_layers, decoder_layers, in_proportion
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.decoding.streams import StreamSession

PUBLISHED = (20, 28)  # of 32 layers, both included


@dataclass(frozen=True)
class Deco(Method):
    """``l + alpha * p* * l_m`` on the candidates, -inf elsewhere; ``p* = max p_m(v)`` over layers m and candidates v.

    Args:
        alpha: strength; 0 is the unchanged model.
        top_k, top_p: the candidates: the most likely tokens, at most top_k, that together reach probability top_p.
        layers: first and last layer to choose m from (0 is the embedding, i the output of the i-th layer); None: 20 to 28
            of LLaMA-7B's 32, in proportion for other depths.

    Differs from the paper: nothing known.
    Differs from the released code (LLaVA-1.5, InstructBLIP and others, batch 1): candidates and layer are per batch row;
    alpha 0 changes nothing (there it still excludes all but the candidates); layers scale with depth (there 20 to 28 for
    every model). Any family and modality are supported.
    """

    name = "deco"
    capabilities = Capabilities(batches=True, beams=True, needs_media=False, continues_cache=True)

    alpha: float = 0.6
    top_k: int = 20
    top_p: float = 0.9
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_range("deco", "alpha", self.alpha, 0.0, hint="the paper: 0.6")
        check_range("deco", "top_p", self.top_p, 0.0, 1.0, hint="the paper: 0.9")
        check_count("deco", "top_k", self.top_k, 1, hint="the paper: 20")
        object.__setattr__(self, "layers", first_and_last("deco", self.layers, hint="the paper: (20, 28)"))

    def session(self, context: GenerationContext) -> DecoSession:
        """Raises SettingError on layers that the model does not have."""
        return DecoSession(self, context)


class DecoSession(StreamSession):
    def __init__(self, strategy: Deco, context: GenerationContext) -> None:
        super().__init__(context)
        self.strategy = strategy
        depth = len(decoder_layers(context.adapter))
        first, last = strategy.layers or in_proportion(PUBLISHED, depth)
        layers = range(first, last + 1)
        check_layers(context.adapter, layers, "deco")
        self.lens = LogitLens(context.adapter, layers)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with self.lens.recording():
            plain = self.main.next(tokens)
        s = self.strategy
        out = plain if s.alpha == 0 else corrected(plain, self.lens.logits().to(plain.dtype), s.alpha, s.top_k, s.top_p)
        return StepOutput(out, details(plain, out), unchanged=plain)


def corrected(logits: Tensor, early: Tensor, alpha: float, top_k: int, top_p: float) -> Tensor:
    """Compute DeCo's logits ``[B, V]`` from the model's ``[B, V]`` and those of its middle layers ``[L, B, V]``."""
    kept = nucleus(logits, top_k, top_p)
    confidence = torch.softmax(early, dim=-1).masked_fill(~kept, -1.0).amax(-1)
    strength, layer = confidence.max(dim=0)
    chosen = early[layer, torch.arange(len(layer), device=layer.device)]
    return (logits + alpha * strength[:, None] * chosen).masked_fill(~kept, float("-inf"))


def nucleus(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return a mask ``[B, V]`` of the smallest set of most likely tokens that reaches ``top_p``, at most ``top_k``."""
    p, order = torch.softmax(logits, dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
    inside = p.cumsum(-1) - p < top_p
    inside[:, 0] = True
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, inside)


deco = Deco
STRATEGIES = {"deco": Deco}
