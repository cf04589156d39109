"""DeCo: add the logits of the middle layer that believes most in one of the likely tokens.

Source: Wang et al., "MLLM Can See? Dynamic Correction Decoding for Hallucination Mitigation", ICLR 2025 (arXiv
2410.11779); formula as in the released code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

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
        alpha: strength; 0 is the model itself.
        top_k, top_p: the candidates: the most likely tokens, at most top_k, that hold top_p of the probability.
        layers: first and last layer that m is looked for in (0 is the embedding, i the output of the i-th layer); None:
            20 to 28 of LLaMA-7B's 32, in proportion elsewhere.

    Differs from the paper: nothing known.
    Differs from the released code (LLaVA-1.5, InstructBLIP and others, batch 1): each row of a batch has its own
    candidates and layer; alpha 0 cuts nothing, there it still bars all but the candidates; 20 to 28 there for every
    model. Any family and modality.
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

    capabilities: ClassVar[Capabilities] = Capabilities(batches=True, needs_media=False, continues_cache=True)

    @property
    def name(self) -> str:
        return "deco"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, context: GenerationContext) -> DecoSession:
        """Raises SettingError on layers the model lacks."""
        return DecoSession(self, context)


class DecoSession:
    def __init__(self, strategy: Deco, context: GenerationContext) -> None:
        self.strategy = strategy
        depth = len(decoder_layers(context.adapter))
        first, last = strategy.layers or in_proportion(PUBLISHED, depth)
        layers = range(first, last + 1)
        check_layers(context.adapter, layers, "deco")
        self.exits = LogitLens(context.adapter, layers)
        self.stream = main_stream(context)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with self.exits.watching():
            plain = self.stream.next(tokens)
        s = self.strategy
        out = (
            plain if s.alpha == 0 else corrected(plain, self.exits.logits().to(plain.dtype), s.alpha, s.top_k, s.top_p)
        )
        return StepOutput(out, details(plain, out), unchanged=plain)

    def cache(self) -> Any:
        return self.stream.cache


def corrected(logits: Tensor, early: Tensor, alpha: float, top_k: int, top_p: float) -> Tensor:
    """DeCo's logits ``[B, V]`` from the model's ``[B, V]`` and those of its middle layers ``[L, B, V]``."""
    kept = nucleus(logits, top_k, top_p)
    belief = torch.softmax(early, dim=-1).masked_fill(~kept, -1.0).amax(-1)
    strength, layer = belief.max(dim=0)
    chosen = early[layer, torch.arange(len(layer), device=layer.device)]
    return (logits + alpha * strength[:, None] * chosen).masked_fill(~kept, float("-inf"))


def nucleus(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """bool ``[B, V]``: the fewest most likely tokens that reach ``top_p`` together, at most ``top_k``."""
    p, order = torch.softmax(logits, dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
    wanted = p.cumsum(-1) - p < top_p
    wanted[:, 0] = True
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, wanted)


def deco(**settings: Any) -> Deco:
    """Dynamic correction decoding; see :class:`Deco` for the settings."""
    return Deco(**settings)


STRATEGIES = {"deco": Deco}
