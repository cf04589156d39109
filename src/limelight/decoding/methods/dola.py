"""DoLa: contrast the last layer with the early layer that differs from it most.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024
(arXiv 2309.03883), section 2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_choice, check_range, cut, details
from limelight.decoding.instruments import LogitLens, check_layers, decoder_layers
from limelight.decoding.strategy import Capabilities, GenerationContext, StepOutput
from limelight.decoding.streams import main_stream
from limelight.errors import SettingError


@dataclass(frozen=True)
class Dola:
    """``s_N - s_m`` where ``p_N >= beta * max p_N``, m the early layer of the largest divergence from N.

    Args:
        layers: candidates for m: ``low`` or ``high``, the even layers of either half of up to 40 layers, else of the first
            or last 20 (0 is the embedding), or layer indices. The paper chooses the half on a validation set; ``low`` is
            what vision-language comparisons use (0, 2 ... 14 of 32). Where the embedding is tied to the head, ``low``
            starts at layer 2, as in transformers.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        divergence: ``released``: ``(KL(M || p_N) + KL(M || p_m)) / 2``, M their mean, as the authors' code and
            transformers' compute it; ``js``: the Jensen-Shannon divergence of the paper, whose KLs run the other way.
        normed: put the final norm before the head on early layers too. The released code does not.

    Differs from the paper: the direction of the divergence, see ``divergence``.
    Differs from the released code (LLaMA) and from transformers' ``dola_layers``: each row of a batch chooses its own
    layer (there the mean over the batch decides). The repetition penalty of 1.2 that the authors use is the caller's
    business, as are their temperature and top-p for sampling. ``low`` is the default here; the authors' scripts name the
    layers.
    """

    layers: str | tuple[int, ...] = "low"
    beta: float = 0.1
    divergence: str = "released"
    normed: bool = False

    def __post_init__(self) -> None:
        check_range("dola", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        check_choice("dola", "divergence", self.divergence, ("released", "js"))
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))  # lists come from configuration files
        elif self.layers not in ("low", "high"):
            raise SettingError(f"dola: layers is {self.layers!r}", hint="low, high, or a tuple of layer indices")

    capabilities: ClassVar[Capabilities] = Capabilities(batches=True, needs_media=False, continues_cache=True)

    @property
    def name(self) -> str:
        return "dola"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def candidates(self, depth: int, *, tied: bool) -> tuple[int, ...]:
        """Layer indices, in ``[0, depth - 1]``."""
        if not isinstance(self.layers, str):
            return tuple(self.layers)
        half = depth // 2 if depth <= 40 else 20
        if self.layers == "high":
            return tuple(range(depth - half if depth > 40 else half, depth, 2))
        start = min(2, depth - 1) if tied else 0
        return tuple(range(start, half, 2)) or (start,)

    def session(self, context: GenerationContext) -> DolaSession:
        """Raises SettingError on layers the model lacks."""
        return DolaSession(self, context)


class DolaSession:
    def __init__(self, strategy: Dola, context: GenerationContext) -> None:
        self.strategy = strategy
        adapter = context.adapter
        embedding = adapter.word_table
        tied = getattr(embedding, "weight", None) is getattr(adapter.head, "weight", 0)
        layers = strategy.candidates(len(decoder_layers(adapter)), tied=tied)
        check_layers(adapter, layers, "dola")
        self.exits = LogitLens(adapter, layers, normed=strategy.normed)
        self.stream = main_stream(context)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with self.exits.watching():
            plain = self.stream.next(tokens)
        early = self.exits.logits().to(plain.dtype)
        final = torch.log_softmax(plain, dim=-1)
        others = torch.log_softmax(early, dim=-1)
        distance = divergence if self.strategy.divergence == "js" else reverse_divergence
        chosen = distance(final, others).argmax(dim=0)
        base = others[chosen, torch.arange(len(chosen), device=chosen.device)]
        out = cut(torch.where(torch.isneginf(final), final, final - base), plain, self.strategy.beta)
        return StepOutput(out, details(plain, out), unchanged=plain)

    def cache(self) -> Any:
        return self.stream.cache


def divergence(s: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence ``[L, B]`` (nats) between ``exp(s)`` [B, V] and each of ``exp(others)`` [L, B, V]."""
    p, q = s.exp(), others.exp()
    middle = _log(0.5 * (p + q))
    return 0.5 * (_kl(p, s, middle) + _kl(q, others, middle))


def reverse_divergence(s: Tensor, others: Tensor) -> Tensor:
    """``(KL(m || p) + KL(m || q)) / 2`` [L, B] (nats) with ``m = (p + q) / 2``; inf where one bars what the other has."""
    m = 0.5 * (s.exp() + others.exp())
    return 0.5 * (_kl(m, _log(m), s) + _kl(m, _log(m), others))


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def _kl(p: Tensor, log_p: Tensor, log_m: Tensor) -> Tensor:
    return torch.where(p > 0, p * (log_p - log_m), torch.zeros_like(log_m)).sum(-1)


def dola(**settings: Any) -> Dola:
    """Decoding by contrasting layers; see :class:`Dola` for the settings."""
    return Dola(**settings)


STRATEGIES = {"dola": Dola}
