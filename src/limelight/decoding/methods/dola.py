"""DoLa: contrast the last layer's distribution with that of the early layer that differs from it most.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024
(arXiv 2309.03883), section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_choice, check_range, cut, details
from limelight.decoding.instruments import LogitLens, check_layers, decoder_layers
from limelight.decoding.strategy import Capabilities, GenerationContext, Method, StepOutput
from limelight.decoding.streams import StreamSession
from limelight.errors import SettingError


@dataclass(frozen=True)
class Dola(Method):
    """``s_N - s_m`` where ``p_N >= beta * max p_N``, m the early layer with the largest divergence from N.

    Args:
        layers: candidates for m: ``low`` or ``high``, the even layers of the lower or upper half for up to 40 layers, else
            of the first or last 20 (0 is the embedding), or layer indices. The paper chooses the half on a validation set;
            vision-language comparisons use ``low`` (0, 2 ... 14 of 32). If the embedding is tied to the head, ``low``
            starts at layer 2, as in transformers.
        beta: plausibility cut, in [0, 1]; 0 drops none.
        divergence: ``released``: ``(KL(M || p_N) + KL(M || p_m)) / 2``, M their mean, as in the authors' code and
            transformers; ``js``: the paper's Jensen-Shannon divergence, whose KLs have the opposite direction.
        normed: apply the final norm before the head to early layers too. The released code does not.

    Differs from the paper: the direction of the divergence, see ``divergence``.
    Differs from the released code (LLaMA) and from transformers' ``dola_layers``: the layer is chosen per batch row
    (there by the mean over the batch). The authors' repetition penalty of 1.2, and their temperature and top-p for
    sampling, are left to the caller. ``low`` is the default here; the authors' scripts specify the layers.
    """

    name = "dola"
    capabilities = Capabilities(batches=True, beams=True, needs_media=False, continues_cache=True)

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
            raise SettingError(f"dola: got layers={self.layers!r}", hint="use low, high, or a tuple of layer indices")

    def candidates(self, depth: int, *, tied: bool) -> tuple[int, ...]:
        """Return the candidate layer indices, in ``[0, depth - 1]``."""
        if not isinstance(self.layers, str):
            return tuple(self.layers)
        half = depth // 2 if depth <= 40 else 20
        if self.layers == "high":
            return tuple(range(depth - half if depth > 40 else half, depth, 2))
        start = min(2, depth - 1) if tied else 0
        return tuple(range(start, half, 2)) or (start,)

    def session(self, context: GenerationContext) -> DolaSession:
        """Raises SettingError on layers that the model does not have."""
        return DolaSession(self, context)


class DolaSession(StreamSession):
    def __init__(self, strategy: Dola, context: GenerationContext) -> None:
        super().__init__(context)
        self.strategy = strategy
        adapter = context.adapter
        embedding = adapter.word_table
        tied = getattr(embedding, "weight", None) is getattr(adapter.head, "weight", 0)
        layers = strategy.candidates(len(decoder_layers(adapter)), tied=tied)
        check_layers(adapter, layers, "dola")
        self.lens = LogitLens(adapter, layers, normed=strategy.normed)

    def next(self, tokens: Tensor | None) -> StepOutput:
        with self.lens.recording():
            plain = self.main.next(tokens)
        early = self.lens.logits().to(plain.dtype)
        final = torch.log_softmax(plain, dim=-1)
        others = torch.log_softmax(early, dim=-1)
        distance = divergence if self.strategy.divergence == "js" else reverse_divergence
        chosen = distance(final, others).argmax(dim=0)
        base = others[chosen, torch.arange(len(chosen), device=chosen.device)]
        out = cut(torch.where(torch.isneginf(final), final, final - base), plain, self.strategy.beta)
        return StepOutput(out, details(plain, out), unchanged=plain)


def divergence(s: Tensor, others: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence ``[L, B]`` (nats) of ``exp(s)`` [B, V] and each ``exp(others)`` [L, B, V]."""
    p, q = s.exp(), others.exp()
    middle = _log(0.5 * (p + q))
    return 0.5 * (_kl(p, s, middle) + _kl(q, others, middle))


def reverse_divergence(s: Tensor, others: Tensor) -> Tensor:
    """Return ``(KL(m || p) + KL(m || q)) / 2`` [L, B] (nats), ``m = (p + q) / 2``; inf if the supports differ."""
    m = 0.5 * (s.exp() + others.exp())
    return 0.5 * (_kl(m, _log(m), s) + _kl(m, _log(m), others))


def _log(p: Tensor) -> Tensor:
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def _kl(p: Tensor, log_p: Tensor, log_m: Tensor) -> Tensor:
    return torch.where(p > 0, p * (log_p - log_m), torch.zeros_like(log_m)).sum(-1)


dola = Dola
STRATEGIES = {"dola": Dola}
