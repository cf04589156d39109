"""OPERA: beam search with an over-trust penalty on summary tokens, and a roll-back when one dominates for too long.

Source: Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and
Retrospection-Allocation", CVPR 2024 (arXiv 2311.17911); formulas and constants as in the released code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_range
from limelight.decoding.generation_options import refuse
from limelight.decoding.instruments import refuse_cross_attention
from limelight.decoding.methods.opera_search import Beam, Search, SearchSettings
from limelight.decoding.processors import require_stateless
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, StepOutput
from limelight.decoding.streams import second_stream
from limelight.errors import SettingError, UnsupportedError


@dataclass(frozen=True)
class Opera:
    """Beam search on ``l - weight * phi`` of each beam's most likely candidates, with roll-back.

    ``a`` is the last layer's attention, maximum over heads, each query's row normalised to sum to 1. ``phi`` of a
    candidate is ``1e-7 max_j prod_{r >= j} sigma a[r, j]`` over the answer's positions so far, itself included; while the
    answer is no longer than ``warmup``, it is minus the candidate's attention to the media. If in every beam the same j
    was the largest more than ``threshold`` times, the answer is rolled back to token j and continued differently, at most
    ``candidates`` times per position.

    Args:
        beams, candidates, sigma, threshold, weight, warmup: see above; the defaults are the published ones.

    The whole answer is searched before its first token is emitted: a streamer gets it at once, and ``logprob`` is 0.
    Each step keeps ``beams * candidates`` copies of the prompt's cache.

    The penalty on attention in the first ``warmup`` tokens is the released code's.
    Differs from the released code (LLaVA, MiniGPT-4, InstructBLIP, Shikra; two more forwards per candidate): a
    candidate's forward is reused when it is chosen; logits processors act before candidates are selected (there on the
    penalised log-probabilities); the products are computed as sums of logarithms (there in float16, which overflows) and
    bounded by 1e30; the history of j is kept per beam from the start of the answer (there 512 tokens); tokens excluded at
    a roll-back get -inf (there the smallest logit); the search starts from one beam, not from copies at -1e9. ``warmup``
    also bounds the roll-back (there a separate constant 10). Rows of a batch are searched one after the other.
    Logits processors act within the search, so those that keep state are refused; custom stopping criteria act on the
    emitted tokens. ``length_penalty`` and ``early_stopping`` have the meaning of transformers' beam search.
    """

    beams: int = 5
    candidates: int = 5
    sigma: float = 50.0
    threshold: int = 15
    weight: float = 1.0
    warmup: int = 10

    def __post_init__(self) -> None:
        for name, least, usual in (("beams", 1, 5), ("candidates", 1, 5), ("threshold", 0, 15), ("warmup", 0, 10)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise SettingError(
                    f"opera: expected {name} of at least {least}, got {value!r}", hint=f"the paper: {usual}"
                )
        check_range("opera", "sigma", self.sigma, 1e-9, hint="the paper: 50")
        check_range("opera", "weight", self.weight, 0.0, hint="the paper: 1")

    capabilities: ClassVar[Capabilities] = Capabilities()

    @property
    def name(self) -> str:
        return "opera"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, context: GenerationContext) -> OperaSession:
        """Raises UnsupportedError when sampling, with processors that keep state, or on a cross-attention model."""
        if context.sampler.sample:
            raise UnsupportedError(
                "opera is a beam search and cannot sample", hint="use do_sample=False, or another strategy"
            )
        refuse_cross_attention(context.adapter, "opera")
        refuse(context, "opera", "use_cache", "prefill_chunk_size", "cache_implementation")
        require_stateless(context.sampler.processors, "opera")
        return OperaSession(self, context)


class OperaSession:
    """Runs the search at the first call, then returns its answer token by token."""

    def __init__(self, strategy: Opera, context: GenerationContext) -> None:
        self.strategy, self.context = strategy, context
        self.answers: list[Beam] = []
        self.count = 0
        self.width = 0

    def next(self, tokens: Tensor | None) -> StepOutput:
        if tokens is None:
            base = second_stream(self.context)
            logits = base.next(None)
            self.width = logits.shape[-1]
            settings = SearchSettings(**self.strategy.settings())
            self.answers = [Search(settings, self.context, base, logits, r).best() for r in range(logits.shape[0])]
        else:
            self.count += 1
        out = torch.full((len(self.answers), self.width), float("-inf"), device=self.context.ids.device)
        found = []
        last = torch.tensor([self.count + 1 >= len(a.tokens) for a in self.answers], device=out.device)
        for row, answer in enumerate(self.answers):
            over = self.count >= len(answer.tokens)
            token, plain = (0, 0) if over else (answer.tokens[self.count], answer.plain[self.count])
            out[row, token] = 0.0
            found.append(Detail(intervened=token != plain, plain=plain))
        return StepOutput(out, tuple(found), decided=True, last=last)


def opera(**settings: Any) -> Opera:
    """Over-trust penalty and retrospection-allocation; see :class:`Opera` for the settings."""
    return Opera(**settings)


STRATEGIES = {"opera": Opera}
