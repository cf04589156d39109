"""Reconsider: a word that the media do not support is taken back, and the next one that they support is said instead.

Source: this library. The grounding score (:mod:`limelight.grounding.score`) of the word about to be said is read off the
meter's forward; no backward pass, no second prompt.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limelight.calibration import flag_rule
from limelight.decoding.contrastive import check_range
from limelight.decoding.dual import (
    calibration_of,
    captured,
    check_composite,
    explainer,
    open_stream,
    split_channels,
    vocabulary,
)
from limelight.decoding.generation_options import refuse
from limelight.decoding.methods.meter import measure
from limelight.decoding.methods.opera_search import library_criteria
from limelight.decoding.processors import for_row, require_stateless
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, StepOutput
from limelight.decoding.vocabulary import Vocabulary
from limelight.errors import SettingError, UnsupportedError
from limelight.grounding.score import POSSIBLE, z_score
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.forward.stream import Channel, modality_channel


@dataclass(frozen=True)
class Reconsider:
    """Greedy decoding that takes unsupported words back.

    A choice among words is looked at where the model finds at least two of them possible; endings, punctuation and the
    rest of a word's spelling are left to the model, and so are words without a rival, which are mostly of grammar. If the
    z-score of the word lies below ``threshold``, the likeliest possible word whose z reaches ``threshold - margin``, and that
    the sentence has not said yet, is said instead. If there is none, the sentence ends: it is taken back to the last place where the model found an end possible,
    and ended there; where it has no such place, the word is said after all (and flagged).

    Args:
        threshold, margin: None: those of the model's calibration (:func:`limelight.calibrate`), else of the default flag.
        possible: the least probability of a word, and of an end.
        composite: ``attnlrp`` or ``cp-lrp``.

    The whole answer is found before its first token is emitted: a streamer gets it at once, and ``logprob`` is 0. Rows of a
    batch are decoded one after the other. Logits processors act inside, so those that keep state are refused; stopping
    criteria of the caller's own act on the emitted tokens.
    """

    threshold: float | None = None
    margin: float | None = None
    possible: float = POSSIBLE
    composite: str = "attnlrp"

    def __post_init__(self) -> None:
        check_composite(self.composite)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise SettingError(
                f"reconsider: expected a finite threshold, got {self.threshold}", hint="4 is the default flag's"
            )
        if self.margin is not None:
            check_range(
                "reconsider", "margin", self.margin, 0.0, hint="0: a word that replaces another reaches the threshold"
            )
        check_range("reconsider", "possible", self.possible, 0.0, 1.0, hint=f"{POSSIBLE} is the default")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(meter=self.composite)

    @property
    def name(self) -> str:
        return "reconsider"

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def session(self, context: GenerationContext) -> ReconsiderSession:
        """Raises UnsupportedError when sampling, with processors that keep state, or without a tokenizer."""
        if context.sampler.sample:
            raise UnsupportedError(
                "reconsider chooses among the likeliest words and cannot sample",
                hint="do_sample=False, or relevance_contrastive()",
            )
        refuse(context, "reconsider", "use_cache", "prefill_chunk_size", "cache_implementation")
        require_stateless(context.sampler.processors, "reconsider")
        return ReconsiderSession(self, context)


class ReconsiderSession:
    """Searches at the first call, then emits the answers token by token."""

    def __init__(self, strategy: Reconsider, context: GenerationContext) -> None:
        self.strategy, self.context = strategy, context
        self.answers: list[Search] = []
        self.count = 0

    def next(self, tokens: Tensor | None) -> StepOutput:
        if tokens is None:
            call, media = captured(self.context)
            channels = [modality_channel(media, call.mask), *split_channels(self.context, call.mask, call.front)]
            for row in range(media.shape[0]):
                own = [replace(c, prompt=c.prompt[row : row + 1]) for c in channels]
                self.answers.append(Search(self.strategy, self.context, call.row(row), own, row))
                self.answers[-1].run()
        else:
            self.count += 1
        out = torch.full((len(self.answers), self.answers[0].width), float("-inf"), device=self.context.ids.device)
        for row, answer in enumerate(self.answers):
            out[row, answer.said[self.count].token if self.count < len(answer.said) else 0] = 0.0
        last = torch.tensor([self.count + 1 >= len(a.said) for a in self.answers], device=out.device)
        return StepOutput(out, explain=self._explain, decided=True, last=last)

    def _explain(self, row: int, token: int) -> Detail:
        return self.answers[row].said[self.count].detail


@dataclass(frozen=True)
class Said:
    """A token of an answer: what is known of it, and whether the sentence could have ended in its place."""

    token: int
    detail: Detail
    could_end: bool


class Search:
    """The answer to one row's prompt."""

    def __init__(
        self, strategy: Reconsider, context: GenerationContext, call: DecoderCall, channels: list[Channel], row: int
    ) -> None:
        self.strategy, self.context, self.call, self.channels, self.row = strategy, context, call, channels, row
        rule = flag_rule(calibration_of(context.adapter, strategy.composite))
        self.threshold = rule["threshold"] if strategy.threshold is None else strategy.threshold
        self.least = self.threshold - (rule["margin"] if strategy.margin is None else strategy.margin)
        self.processed = for_row(context.sampler.processors, row, context.ids.shape[0])
        self.stopping = library_criteria(context.stopping)
        self.said: list[Said] = []
        self.begun = 0  # where the present sentence begins
        self._open([])
        self.vocabulary = Vocabulary.of(context.adapter, strategy.name, self.width)

    @property
    def width(self) -> int:
        return int(self.logits.shape[-1])

    @property
    def ids(self) -> Tensor:
        """Prompt and answer so far ``[1, T]``."""
        tokens = self.context.ids.new_tensor([[s.token for s in self.said]])
        return torch.cat([self.context.ids[self.row : self.row + 1], tokens], dim=-1)

    def _open(self, tokens: list[int]) -> None:
        """A stream behind ``tokens`` of the answer: recurrent layers cannot be rewound, so it starts anew."""
        self.dual = open_stream(self.context, self.call, self.channels, self.strategy.composite)
        self._measure(None)
        for token in tokens:
            self._measure(token)

    def _measure(self, token: int | None) -> None:
        """Logits ``[V]``, Phi_M and that of each modality, after ``token``."""
        said = None if token is None else self.context.ids.new_tensor([token])
        logits, phi, split = measure(self.dual, said)
        self.logits, self.phi, self.split = logits[0], phi[0], {k: v[0] for k, v in split.items()}

    def run(self) -> None:
        while not self.said or not bool(self.stopping(self.ids, None)[0]):
            scores = self.processed(self.ids, self.logits[None])[0]
            choice = self._supported(scores)
            if choice is None and (place := self._last_end()) is not None:
                del self.said[place:]
                self._open([s.token for s in self.said])
                scores = self.processed(self.ids, self.logits[None])[0]
                choice = int(scores.masked_fill(~self.vocabulary.ends, float("-inf")).argmax())
            self._say(int(scores.argmax()) if choice is None else choice, scores)

    def _supported(self, scores: Tensor) -> int | None:
        """The token to say: the model's own choice, or the next one that the media support; None: there is none."""
        choice = int(scores.argmax())
        begins = self.vocabulary.begins(self.said[-1].token if self.said else None)
        possible = begins & (torch.softmax(self.logits, dim=-1) >= self.strategy.possible) & ~torch.isneginf(scores)
        z = z_score(self.phi, vocabulary(self.context, self.phi, self.logits))
        others = possible.clone()
        others[choice] = False
        if not bool(begins[choice]) or not bool(others.any()) or not bool(z[choice] < self.threshold):
            return choice
        others[[s.token for s in self.said[self.begun :]]] = False  # "a pig and a pig" is no better than "a pig."
        supported = others & (z >= self.least)
        return int(scores.masked_fill(~supported, float("-inf")).argmax()) if bool(supported.any()) else None

    def _last_end(self) -> int | None:
        """Where the sentence could have ended last: how many tokens stand before that end."""
        places = range(len(self.said) - 1, self.begun, -1)
        return next((n for n in places if self.said[n].could_end), None)

    def _say(self, token: int, scores: Tensor) -> None:
        rows = (self.row + 1, -1)
        explain = explainer(
            self.context, self.logits.expand(*rows), self.phi.expand(*rows),
            split={k: v.expand(*rows) for k, v in self.split.items()}, composite=self.strategy.composite,
        )  # fmt: skip
        detail = explain(self.row, token)
        chances = torch.softmax(self.logits, dim=-1)
        could_end = self.vocabulary.ends & (chances >= self.strategy.possible) & ~torch.isneginf(scores)
        changed = token != int(scores.argmax())
        self.said.append(Said(token, replace(detail, intervened=changed), bool(could_end.any())))
        if bool(self.vocabulary.ends[token]):
            self.begun = len(self.said)
        self._measure(token)


def reconsider(**settings: Any) -> Reconsider:
    """Unsupported words are taken back; see :class:`Reconsider` for the settings."""
    return Reconsider(**settings)


STRATEGIES = {"reconsider": Reconsider}
