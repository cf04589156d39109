"""LRP beam: of several continuations the one whose words owe most to the media.

Source: the beam scoring of LIME's authors in their successor paper (arXiv 2608.23264): a beam's score is the media's mass in
``softmax(R / tau)`` over the positions, R the relevance of the beam's words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from limelight.decoding.contrastive import check_range
from limelight.decoding.generation_options import refuse
from limelight.decoding.methods.opera_search import library_criteria
from limelight.decoding.processors import for_row, require_stateless
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, StepOutput
from limelight.errors import SettingError, UnsupportedError
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.attribute import relevance_of
from limelight.relevance.composites import COMPOSITES
from limelight.types import Relevance


@dataclass(frozen=True)
class LrpBeam:
    """Beams chosen by ``mean_t sum_{i in M} softmax(R_t / tau)_i`` over their first words, then greedy decoding.

    R_t is the relevance of the beam's t-th token behind those before it, over the real positions of prompt and answer; M are
    the media's. Each beam offers its ``beams`` likeliest tokens; the ``beams`` best of all go on. Beams that have ended stay
    in the race with the score they have. After ``length`` tokens the best beam is decoded greedily.

    Args:
        beams: how many continuations are kept (the paper: 3).
        length: how many of the first tokens are chosen so (the paper: 25).
        tau: temperature of the softmax over positions (LIME's: 0.1).
        composite: the rules of R.

    Costs one uncached forward a beam and one backward pass a candidate, for each of the first ``length`` tokens.

    The whole answer is found before its first token is emitted: a streamer gets it at once, and ``logprob`` is 0. Rows of a
    batch are searched one after the other. Logits processors act inside the search, so those that keep state are refused;
    stopping criteria of the caller's own act on the emitted tokens.

    Differs from the paper: the score is the mean over a beam's tokens, so that beams of unequal
    length compare; candidates are each beam's likeliest tokens; equal scores are told apart by probability.
    """

    beams: int = 3
    length: int = 25
    tau: float = 0.1
    composite: str = "attnlrp"

    capabilities: ClassVar[Capabilities] = Capabilities(gradients=True)

    def __post_init__(self) -> None:
        for name, value in (("beams", self.beams), ("length", self.length)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(
                    f"lrp-beam: expected {name} of at least 1, got {value!r}", hint="the paper: 3 beams, 25 tokens"
                )
        check_range("lrp-beam", "tau", self.tau, 1e-9, hint="0.1 is LIME's")
        if self.composite not in COMPOSITES:
            raise SettingError(f"unknown composite {self.composite!r}", hint=f"one of {', '.join(COMPOSITES)}")

    @property
    def name(self) -> str:
        return "lrp-beam"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, context: GenerationContext) -> LrpBeamSession:
        """Raises UnsupportedError when sampling, or with processors that keep state."""
        if context.sampler.sample:
            raise UnsupportedError(
                "lrp-beam is a beam search and cannot sample", hint="do_sample=False, or another strategy"
            )
        refuse(context, "lrp-beam", "use_cache", "prefill_chunk_size", "cache_implementation")
        require_stateless(context.sampler.processors, "lrp-beam")
        return LrpBeamSession(self, context)


@dataclass(frozen=True)
class Beam:
    """A hypothesis: prompt with generated tokens, the media's relevance mass of each token, and each token's details."""

    call: DecoderCall
    tokens: tuple[int, ...] = ()
    masses: tuple[float, ...] = ()
    logprob: float = 0.0
    told: tuple[Detail, ...] = ()
    ended: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """Mean mass, then mean log-probability."""
        n = max(1, len(self.masses))
        return sum(self.masses) / n, self.logprob / max(1, len(self.tokens))


class LrpBeamSession:
    """Searches at the first call, then emits the answers token by token."""

    def __init__(self, strategy: LrpBeam, context: GenerationContext) -> None:
        self.strategy, self.context = strategy, context
        self.answers: list[Beam] = []
        self.count, self.width = 0, 0

    def next(self, tokens: Tensor | None) -> StepOutput:
        if tokens is None:
            with torch.inference_mode(False), torch.no_grad():
                call = self.context.adapter.capture(self.context.inputs).cloned()
            self.answers = [self._search(call.row(r), r) for r in range(self.context.ids.shape[0])]
        else:
            self.count += 1
        out = torch.full((len(self.answers), self.width), float("-inf"), device=self.context.ids.device)
        for row, answer in enumerate(self.answers):
            out[row, answer.tokens[self.count] if self.count < len(answer.tokens) else 0] = 0.0
        told = tuple(a.told[min(self.count, len(a.told) - 1)] for a in self.answers)
        last = torch.tensor([self.count + 1 >= len(a.tokens) for a in self.answers], device=out.device)
        return StepOutput(out, told, decided=True, last=last)

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
                    grown += [ending(b) for b in self._offered(beam, scores, logits, row)]
            beams = sorted(grown, key=lambda b: b.rank, reverse=True)[: self.strategy.beams]
        best = beams[0]
        while not best.ended:
            logits = self._logits(best)
            scores = torch.log_softmax(processed(ids(best), logits[None])[0].double(), dim=-1)
            token = int(scores.argmax())
            plain = int(logits.argmax())
            told = Detail(intervened=token != plain, plain=plain)
            best = ending(self._grown(best, token, float(scores[token]), told))
        return best

    def _logits(self, beam: Beam) -> Tensor:
        """``[V]`` behind all that a beam has said."""
        adapter = self.context.adapter
        with torch.inference_mode(False), torch.no_grad():
            hidden = adapter.hidden(beam.call)[:, -1:]
            out: Tensor = adapter.logits(hidden)[0, 0].float()
        self.width = int(out.shape[-1])
        return out

    def _offered(self, beam: Beam, scores: Tensor, logits: Tensor, row: int) -> list[Beam]:
        """A beam's likeliest continuations, with the relevance of each."""
        values, tokens = scores.topk(min(self.strategy.beams, int(torch.isfinite(scores).sum())))
        at = [(beam.call.length - 1, int(t)) for t in tokens]
        spans = self.context.spans[row] if self.context.spans else None
        found = relevance_of(
            self.context.adapter, beam.call, self.context.inputs, at, row=row,
            composite=COMPOSITES[self.strategy.composite], generated=self.context.ids.new_tensor(list(beam.tokens)),
            prompt_spans=spans,
        )  # fmt: skip
        plain = int(logits.argmax())
        offered = []
        for token, value, relevance in zip(tokens.tolist(), values.tolist(), found, strict=True):
            told = Detail(intervened=token != plain, plain=plain)
            if self.context.details:
                told = replace(told, relevance=relevance, shares=relevance.shares())
            mass = media_mass(relevance, beam.call.mask[0], self.strategy.tau)
            offered.append(self._grown(replace(beam, masses=(*beam.masses, mass)), token, value, told))
        return offered

    def _grown(self, beam: Beam, token: int, logprob: float, told: Detail) -> Beam:
        with torch.inference_mode(False), torch.no_grad():
            call = beam.call.appended(self.context.adapter.embed(self.context.ids.new_tensor([[token]])))
        return replace(
            beam, call=call, tokens=(*beam.tokens, token), logprob=beam.logprob + logprob, told=(*beam.told, told)
        )


def media_mass(relevance: Relevance, mask: Tensor, tau: float) -> float:
    """``sum_{i in M} softmax(R / tau)_i`` over the real positions, ``mask`` [T]."""
    scores = relevance.scores.double().masked_fill(~mask.to(relevance.scores.device), float("-inf"))
    mass = torch.softmax(scores / tau, dim=-1)
    return float(sum(mass[s.start : s.stop].sum() for s in relevance.spans if s.modality != "text"))


def lrp_beam(**settings: Any) -> LrpBeam:
    """Beams whose words owe most to the media; see :class:`LrpBeam` for the settings."""
    return LrpBeam(**settings)


STRATEGIES = {"lrp-beam": LrpBeam}
