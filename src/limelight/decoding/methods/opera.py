"""OPERA: beam search with an over-trust penalty on summary tokens, and a roll-back when one dominates for too long.

Source: Huang et al., "OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via Over-Trust Penalty and
Retrospection-Allocation", CVPR 2024 (arXiv 2311.17911); formulas and constants as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass

from limelight.decoding.contrastive import check_count, check_range
from limelight.decoding.instruments import refuse_cross_attention
from limelight.decoding.methods.opera_search import Search, SearchSettings
from limelight.decoding.searched import Answer, SearchedSession
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, Method
from limelight.decoding.streams import second_stream


@dataclass(frozen=True)
class Opera(Method):
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

    name = "opera"
    capabilities = Capabilities()

    beams: int = 5
    candidates: int = 5
    sigma: float = 50.0
    threshold: int = 15
    weight: float = 1.0
    warmup: int = 10

    def __post_init__(self) -> None:
        check_count("opera", "beams", self.beams, 1, hint="the paper: 5")
        check_count("opera", "candidates", self.candidates, 1, hint="the paper: 5")
        check_count("opera", "threshold", self.threshold, 0, hint="the paper: 15")
        check_count("opera", "warmup", self.warmup, 0, hint="the paper: 10")
        check_range("opera", "sigma", self.sigma, 1e-9, hint="the paper: 50")
        check_range("opera", "weight", self.weight, 0.0, hint="the paper: 1")

    def session(self, context: GenerationContext) -> OperaSession:
        """Raises UnsupportedError when sampling, with processors that keep state, or on a cross-attention model."""
        refuse_cross_attention(context.adapter, "opera")
        return OperaSession(self, context)


class OperaSession(SearchedSession):
    def __init__(self, strategy: Opera, context: GenerationContext) -> None:
        super().__init__(context, "opera")
        self.search_settings = SearchSettings(**strategy.settings())

    def search(self) -> list[Answer]:
        base = second_stream(self.context)
        logits = base.next(None)
        self.width = logits.shape[-1]
        found = [Search(self.search_settings, self.context, base, logits, r).best() for r in range(logits.shape[0])]
        return [
            [(t, Detail(intervened=t != plain, plain=plain)) for t, plain in zip(b.tokens, b.plain, strict=True)]
            for b in found
        ]


opera = Opera
STRATEGIES = {"opera": Opera}
