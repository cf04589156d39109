"""PAI: more attention to the image from the query that decides, and guidance away from the prompt without it.

Source: Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
ECCV 2024 (arXiv 2407.21771); formulas as in the released code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limelight.decoding.contrast_inputs import percept, without
from limelight.decoding.contrastive import check_range, details, guided
from limelight.decoding.instruments import DecoderHook, check_layers, decoder_layers, key_places, refuse_cross_attention
from limelight.decoding.strategy import Detail, Run, StepOutput
from limelight.errors import SettingError
from limelight.models.adapter import Adapter
from limelight.models.runtime.attention import attention_hooks, check_bound
from limelight.models.runtime.cached_decoder import Stream


@dataclass(frozen=True)
class Pai:
    """Before the softmax, in the last query: ``w += alpha |w|`` on the percept; then ``s + (gamma - 1)(s - s')``.

    Args:
        alpha: how much the percept's attention scores are raised; 0 leaves attention alone.
        gamma: guidance, at least 1; ``s'`` is the log-softmax without the percept. 1: no second prompt and no cut.
        beta: plausibility cut of the guidance, in [0, 1]; 0 drops none.
        start, stop: layers ``start <= layer < stop``; None: to the last layer (the paper: 2 to 32 of LLaVA-7B's 32).

    Differs from the released code (LLaVA-1.5, MiniGPT-4, Shikra; LLaMA attention copied): any model whose attention
    goes through transformers' interface, batches, video and sound; the second prompt has positions of its own. The
    logits keep the model's constant, so that alpha 0 and gamma 1 give them back. ``plain`` costs one more cached
    forward a token and is known only where details are wanted.
    """

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    start: int = 2
    stop: int | None = None

    def __post_init__(self) -> None:
        check_range("pai", "alpha", self.alpha, 0.0, hint="the paper: 0.2 for LLaVA-1.5")
        check_range("pai", "gamma", self.gamma, 1.0, hint="the paper: 1.1; 1 is no guidance")
        check_range("pai", "beta", self.beta, 0.0, 1.0, hint="the paper: 0.1")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise SettingError(
                f"pai: expected 0 <= start < stop, got {self.start} and {self.stop}", hint="the paper: 2 and 32"
            )

    @property
    def name(self) -> str:
        return "pai"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, run: Run) -> PaiSession:
        """Raises SettingError on layers the model lacks, UnsupportedError on a cross-attention model."""
        return PaiSession(self, run)


class PaiSession:
    def __init__(self, strategy: Pai, run: Run) -> None:
        self.strategy, self.run = strategy, run
        adapter = run.adapter
        refuse_cross_attention(adapter, "pai")
        stop = len(decoder_layers(adapter)) if strategy.stop is None else strategy.stop
        wanted = range(strategy.start, stop)
        check_layers(adapter, wanted, "pai")
        self.layers = set(wanted) & set(adapter.attention_layers)
        check_layers(adapter, sorted(self.layers), "pai")
        self.boost = Boost(adapter, percept(run), self.layers, strategy.alpha)
        self.main = Stream(adapter, run.ids, run.kwargs)
        self.contrast = without(run, percept(run)) if strategy.gamma > 1 else None
        self.plain = Stream.fresh(adapter, run.ids, run.kwargs) if run.details else None

    def next(self, tokens: Tensor | None) -> StepOutput:
        logits = self._boosted(tokens)
        out = logits
        if self.contrast is not None:
            out = guided(logits, self.contrast.next(tokens), self.strategy.gamma - 1, self.strategy.beta)
        if self.plain is None:
            active = self.strategy.alpha > 0 or self.contrast is not None
            return StepOutput(out, (Detail(intervened=active),) * out.shape[0])
        return StepOutput(out, details(self.plain.next(tokens), out))

    def _boosted(self, tokens: Tensor | None) -> Tensor:
        if self.strategy.alpha == 0:
            return self.main.next(tokens)
        self.boost.length = self.run.ids.shape[1] if tokens is None else self.boost.length + 1
        with self.run.adapter.routed(), attention_hooks(self.boost) as seen:
            logits = self.main.next(tokens)
        check_bound(seen, self.layers)
        return logits


class Boost(DecoderHook):
    """``w += alpha |w|`` on the last query's scores of the percept, before the softmax."""

    def __init__(self, adapter: Adapter, places: Tensor, layers: set[int], alpha: float) -> None:
        super().__init__(adapter)
        self.places, self.layers, self.alpha = places, layers, alpha
        self.length = places.shape[1]

    def scores(self, layer: int, scores: Tensor) -> Tensor:
        if layer not in self.layers or not self.inside:
            return scores
        keys = key_places(self.places, scores.shape[-1], self.length)[:, None]
        last = scores[..., -1, :]
        allowed = keys & (last > torch.finfo(last.dtype).min / 2)
        raised = torch.where(allowed, last + self.alpha * last.abs(), last)
        return torch.cat([scores[..., :-1, :], raised[..., None, :]], dim=-2)


def pai(**settings: Any) -> Pai:
    """Paying attention to the image; see :class:`Pai` for the settings."""
    return Pai(**settings)


STRATEGIES = {"pai": Pai}
