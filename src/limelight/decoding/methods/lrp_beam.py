"""LRP beam: beam search for the continuation whose tokens have the most relevance at the media.

Source: the beam scoring of LIME's authors in their successor paper (arXiv 2608.23264): a beam's score is the media's mass in
``softmax(R / tau)`` over the positions, where R is the relevance of the beam's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_count, check_range
from limelight.decoding.processors import for_row
from limelight.decoding.searched import Answer, SearchedSession, library_criteria
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, Method
from limelight.errors import SettingError
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attribute import relevance_of
from limelight.relevance.composites import COMPOSITES
from limelight.types import Relevance


@dataclass(frozen=True)
class LrpBeam(Method):
    """Beam search scored by ``mean_t sum_{i in M} softmax(R_t / tau)_i`` for the first tokens, then greedy decoding.

    R_t is the relevance of the beam's t-th token over the real positions of the prompt and the preceding tokens; M are the
    media positions. Each beam is extended by its ``beams`` likeliest tokens, and the ``beams`` best extensions are kept.
    Finished beams keep competing with their score. After ``length`` tokens the best beam is completed greedily.

    Args:
        beams: number of beams (the paper: 3).
        length: number of tokens chosen by beam search (the paper: 25).
        tau: temperature of the softmax over positions (LIME: 0.1).
        composite: composite of the relevance rules.
        beta: candidates less likely than ``beta`` times the likeliest are left out, as in contrastive decoding (the paper
            has no such cut: 0).

    Cost: one uncached forward pass per beam and one backward pass per candidate, for each of the first ``length`` tokens.

    The complete answer is determined before its first token is emitted, so a streamer receives it at once, and ``logprob``
    is 0. Rows of a batch are searched one after the other. Logits processors are applied during the search, so stateful
    ones are not supported; custom stopping criteria are applied to the emitted tokens.

    Differs from the paper: the score is the mean over a beam's tokens, so that beams of different lengths are comparable;
    candidates are each beam's likeliest tokens; ties are broken by probability.
    """

    name = "lrp-beam"
    capabilities = Capabilities(gradients=True)

    beams: int = 3
    length: int = 25
    tau: float = 0.1
    composite: str = "attnlrp"
    beta: float = 0.0

    def __post_init__(self) -> None:
        check_count("lrp-beam", "beams", self.beams, 1, hint="the paper: 3")
        check_count("lrp-beam", "length", self.length, 1, hint="the paper: 25")
        check_range("lrp-beam", "tau", self.tau, 1e-9, hint="0.1 is LIME's")
        check_range("lrp-beam", "beta", self.beta, 0.0, 1.0, hint="0 keeps every candidate; 0.1 is usual")
        if self.composite not in COMPOSITES:
            raise SettingError(f"unknown composite {self.composite!r}", hint=f"one of {', '.join(COMPOSITES)}")

    def session(self, context: GenerationContext) -> LrpBeamSession:
        """Start a session; raises UnsupportedError for sampling or stateful logits processors."""
        return LrpBeamSession(self, context)


@dataclass(frozen=True)
class Beam:
    """A hypothesis: prompt with generated tokens, the media's relevance mass of each token, and each token's details."""

    call: DecoderCall
    tokens: tuple[int, ...] = ()
    masses: tuple[float, ...] = ()
    logprob: float = 0.0
    details: tuple[Detail, ...] = ()
    ended: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: mean mass, then mean log-probability."""
        n = max(1, len(self.masses))
        return sum(self.masses) / n, self.logprob / max(1, len(self.tokens))


class LrpBeamSession(SearchedSession):
    def __init__(self, strategy: LrpBeam, context: GenerationContext) -> None:
        super().__init__(context, "lrp-beam")
        self.strategy = strategy

    def search(self) -> list[Answer]:
        with torch.inference_mode(False), torch.no_grad():
            call = self.context.adapter.capture(self.context.inputs).cloned()
        found = [self._search(call.row(r), r) for r in range(self.context.ids.shape[0])]
        return [list(zip(best.tokens, best.details, strict=True)) for best in found]

    def _search(self, call: DecoderCall, row: int) -> Beam:
        processed = for_row(self.context.sampler.processors, row, self.context.ids.shape[0])
        stopping = library_criteria(self.context.stopping)
        prompt = self.context.ids[row : row + 1]

        def ids(beam: Beam) -> Tensor:
            return torch.cat([prompt, prompt.new_tensor([beam.tokens])], dim=-1)

        def ending(beam: Beam) -> Beam:
            return replace(beam, ended=bool(stopping(ids(beam), None)[0]))

        beams = [Beam(call)]
        for _ in range(self.strategy.length):
            if all(b.ended for b in beams):
                break
            grown = [b for b in beams if b.ended]
            for beam in beams:
                if not beam.ended:
                    logits = self._logits(beam)
                    scores = torch.log_softmax(processed(ids(beam), logits[None])[0].double(), dim=-1)
                    grown += [ending(b) for b in self._extensions(beam, scores, logits, row)]
            beams = sorted(grown, key=lambda b: b.rank, reverse=True)[: self.strategy.beams]
        best = beams[0]
        while not best.ended:
            logits = self._logits(best)
            scores = torch.log_softmax(processed(ids(best), logits[None])[0].double(), dim=-1)
            token = int(scores.argmax())
            plain = int(logits.argmax())
            detail = Detail(intervened=token != plain, plain=plain)
            best = ending(self._extended(best, token, float(scores[token]), detail))
        return best

    def _logits(self, beam: Beam) -> Tensor:
        """Return the next logits ``[V]`` of a beam."""
        adapter = self.context.adapter
        with torch.inference_mode(False), torch.no_grad():
            hidden = adapter.hidden(beam.call)[:, -1:]
            out: Tensor = adapter.logits(hidden)[0, 0].float()
        self.width = int(out.shape[-1])
        return out

    def _extensions(self, beam: Beam, scores: Tensor, logits: Tensor, row: int) -> list[Beam]:
        """Extend a beam by each of its likeliest tokens, with the relevance of each token."""
        values, tokens = scores.topk(min(self.strategy.beams, int(torch.isfinite(scores).sum())))
        likely = values.exp() >= self.strategy.beta * values[0].exp()
        values, tokens = values[likely], tokens[likely]
        at = [(beam.call.length - 1, int(t)) for t in tokens]
        spans = self.context.spans[row] if self.context.spans else None
        found = relevance_of(
            self.context.adapter, beam.call, self.context.inputs, at, row=row,
            composite=COMPOSITES[self.strategy.composite], generated=self.context.ids.new_tensor(list(beam.tokens)),
            prompt_spans=spans,
        )  # fmt: skip
        plain = int(logits.argmax())
        extensions = []
        for token, value, relevance in zip(tokens.tolist(), values.tolist(), found, strict=True):
            detail = Detail(intervened=token != plain, plain=plain)
            if self.context.details:
                detail = replace(detail, relevance=relevance, shares=relevance.shares())
            mass = media_mass(relevance, beam.call.mask[0], self.strategy.tau)
            extensions.append(self._extended(replace(beam, masses=(*beam.masses, mass)), token, value, detail))
        return extensions

    def _extended(self, beam: Beam, token: int, logprob: float, detail: Detail) -> Beam:
        with torch.inference_mode(False), torch.no_grad():
            call = beam.call.appended(self.context.adapter.embed(self.context.ids.new_tensor([[token]])))
        return Beam(call, (*beam.tokens, token), beam.masses, beam.logprob + logprob, (*beam.details, detail))


def media_mass(relevance: Relevance, mask: Tensor, tau: float) -> float:
    """Return ``sum_{i in M} softmax(R / tau)_i`` over the real positions, ``mask`` [T]."""
    scores = relevance.scores.double().masked_fill(~mask.to(relevance.scores.device), float("-inf"))
    mass = torch.softmax(scores / tau, dim=-1)
    return float(sum(mass[s.start : s.stop].sum() for s in relevance.spans if s.modality != "text"))


lrp_beam = LrpBeam
STRATEGIES = {"lrp-beam": LrpBeam}
