"""DeCo: add the logits of the middle layer that assigns the highest probability to a likely token.

Source: Wang et al., "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation", ICLR 2025 (arXiv
2410.11779); formula as in the released code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from limelight.decoding.beams import reorder_streams
from limelight.decoding.contrastive import check_range, details
from limelight.decoding.instruments import LogitLens, check_layers, decoder_layers, in_proportion
from limelight.decoding.strategy import Capabilities, GenerationContext, StepOutput
from limelight.decoding.streams import main_stream
from limelight.errors import SettingError

PUBLISHED = (20, 28)  # of 32 layers, both included


@dataclass(frozen=True)
class Deco:
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

    alpha: float = 0.6
    top_k: int = 20
    top_p: float = 0.9
    layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_range("deco", "alpha", self.alpha, 0.0, hint="the paper: 0.6")
        check_range("deco", "top_p", self.top_p, 0.0, 1.0, hint="the paper: 0.9")
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise SettingError(f"deco: expected top_k of at least 1, got {self.top_k!r}", hint="the paper: 20")
        if self.layers is None:
            return
        object.__setattr__(self, "layers", tuple(self.layers))  # lists come from configuration files
        if len(self.layers) != 2 or self.layers[1] < self.layers[0]:
            raise SettingError(f"deco: expected layers (first, last), got {self.layers}", hint="the paper: (20, 28)")

    capabilities: ClassVar[Capabilities] = Capabilities(
        batches=True, beams=True, needs_media=False, continues_cache=True
    )

    @property
    def name(self) -> str:
        return "deco"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, context: GenerationContext) -> DecoSession:
        """Raises SettingError on layers that the model does not have."""
        return DecoSession(self, context)


class DecoSession:
    def __init__(self, strategy: Deco, context: GenerationContext) -> None:
        self.strategy = strategy
        depth = len(decoder_layers(context.adapter))
        first, last = strategy.layers or in_proportion(PUBLISHED, depth)
        layers = range(first, last + 1)
        check_layers(context.adapter, layers, "deco")
        self.lens = LogitLens(context.adapter, layers)
        self.stream = main_stream(context)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with self.lens.recording():
            plain = self.stream.next(tokens)
        s = self.strategy
        out = plain if s.alpha == 0 else corrected(plain, self.lens.logits().to(plain.dtype), s.alpha, s.top_k, s.top_p)
        return StepOutput(out, details(plain, out), unchanged=plain)

    def cache(self) -> Any:
        return self.stream.cache

    def reorder(self, rows: Tensor) -> None:
        reorder_streams(rows, self.stream)


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


def deco(**settings: Any) -> Deco:
    """Dynamic correction decoding; see :class:`Deco` for the settings."""
    return Deco(**settings)


STRATEGIES = {"deco": Deco}
