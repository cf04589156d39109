"""DoLa: contrast the last layer with the early layer that differs from it most.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024
(arXiv 2309.03883), section 2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_range, cut, details
from limelight.decoding.instruments import LogitLens, check_layers, decoder_layers
from limelight.decoding.strategy import Run, StepOutput
from limelight.errors import SettingError
from limelight.models.runtime.cached_decoder import Stream


@dataclass(frozen=True)
class Dola:
    """``s_N - s_m`` where ``p_N >= beta * max p_N``, m the early layer of the largest Jensen-Shannon divergence to N.

    Args:
        layers: candidates for m: ``low`` or ``high``, the even layers of either half (0 is the embedding; left out
            where it is tied to the head), or layer indices. The paper chooses the half on a validation set; ``low`` is what
            vision-language comparisons use (0, 2 ... 14 of 32).
        beta: plausibility cut, in [0, 1]; 0 drops none.
        normed: put the final norm before the head on early layers too. The released code does not.

    Differs from the released code: each row of a batch chooses its own layer; the early layers are normed by default.
    The repetition penalty of 1.2 that the authors use is the caller's business.
    """

    layers: str | tuple[int, ...] = "low"
    beta: float = 0.1
    normed: bool = True

    def __post_init__(self) -> None:
        check_range("dola", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))  # lists come from configuration files
        elif self.layers not in ("low", "high"):
            raise SettingError(f"dola: layers is {self.layers!r}", hint="low, high, or a tuple of layer indices")

    @property
    def name(self) -> str:
        return "dola"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def candidates(self, depth: int, *, tied: bool) -> tuple[int, ...]:
        """Layer indices, in ``[0, depth - 1]``."""
        if not isinstance(self.layers, str):
            return tuple(self.layers)
        half = depth // 2
        found = range(0, half, 2) if self.layers == "low" else range(half, depth, 2)
        return tuple(i for i in found if i > 0 or not tied) or (min(1, depth - 1),)

    def session(self, run: Run) -> DolaSession:
        """Raises SettingError on layers the model lacks."""
        return DolaSession(self, run)


class DolaSession:
    def __init__(self, strategy: Dola, run: Run) -> None:
        self.strategy = strategy
        adapter = run.adapter
        embedding = adapter.model.get_input_embeddings()
        tied = getattr(embedding, "weight", None) is getattr(adapter.head, "weight", 0)
        layers = strategy.candidates(len(decoder_layers(adapter)), tied=tied)
        check_layers(adapter, layers, "dola")
        self.exits = LogitLens(adapter, layers, normed=strategy.normed)
        self.stream = Stream(adapter, run.ids, run.kwargs)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with self.exits.watching():
            plain = self.stream.next(tokens)
        early = self.exits.logits().to(plain.dtype)
        final = torch.log_softmax(plain, dim=-1)
        others = torch.log_softmax(early, dim=-1)
        chosen = divergence(final, others).argmax(dim=0)
        base = others[chosen, torch.arange(len(chosen), device=chosen.device)]
        out = cut(torch.where(torch.isneginf(final), final, final - base), plain, self.strategy.beta)
        return StepOutput(out, details(plain, out))


def divergence(s: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence ``[L, B]`` (nats) between ``exp(s)`` [B, V] and each of ``exp(others)`` [L, B, V]."""
    p, q = s.exp(), others.exp()
    middle = (0.5 * (p + q)).clamp_min(torch.finfo(p.dtype).tiny).log()
    return 0.5 * (_kl(p, s, middle) + _kl(q, others, middle))


def _kl(p: Tensor, log_p: Tensor, log_m: Tensor) -> Tensor:
    return torch.where(p > 0, p * (log_p - log_m), torch.zeros_like(log_m)).sum(-1)


def dola(**settings: Any) -> Dola:
    """Decoding by contrasting layers; see :class:`Dola` for the settings."""
    return Dola(**settings)


STRATEGIES = {"dola": Dola}
