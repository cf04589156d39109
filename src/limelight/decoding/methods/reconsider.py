"""Reconsider: greedy decoding that replaces words not supported by the media with the likeliest supported ones.

Source: this library. The grounding score (:mod:`limelight.grounding.score`) of each candidate comes from the meter's forward
pass, without a backward pass or a second prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
from limelight.decoding.methods.meter import measure
from limelight.decoding.processors import for_row
from limelight.decoding.searched import Answer, SearchedSession, library_criteria
from limelight.decoding.strategy import Capabilities, Detail, GenerationContext, Method
from limelight.decoding.vocabulary import Vocabulary
from limelight.errors import SettingError
from limelight.grounding.score import POSSIBLE, z_score
from limelight.models.runtime.capture import DecoderCall
from limelight.relevance.forward.stream import Channel, modality_channel


@dataclass(frozen=True)
class Reconsider(Method):
    """Greedy decoding that replaces unsupported words.

    A word is checked when the model considers at least two words possible at its position; word continuations, punctuation,
    end tokens, and words without such a rival (mostly function words) are always taken from the model. If the word's z is
    below ``threshold``, it is replaced by the likeliest possible word whose z is at least ``threshold - margin`` and that the
    sentence does not contain yet. If there is no such word, the sentence is truncated at the last position where the model
    considered its end possible, and ended there. If there is no such position, the word is kept (and flagged).

    Args:
        threshold, margin: None: those of the model's calibration (:func:`limelight.calibrate`), else of the default flag.
        possible: minimum probability of a possible word or sentence end.
        composite: ``attnlrp`` or ``cp-lrp``.

    The complete answer is determined before its first token is emitted, so a streamer receives it at once, and ``logprob``
    is 0. Rows of a batch are decoded one after the other. Logits processors are applied during the search, so stateful ones
    are not supported; custom stopping criteria are applied to the emitted tokens.
    """

    name = "reconsider"

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
            check_range("reconsider", "margin", self.margin, 0.0, hint="0: replacements must reach the threshold")
        check_range("reconsider", "possible", self.possible, 0.0, 1.0, hint=f"{POSSIBLE} is the default")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(meter=self.composite)

    def session(self, context: GenerationContext) -> ReconsiderSession:
        """Start a session; raises UnsupportedError for sampling, stateful logits processors, or without a tokenizer."""
        return ReconsiderSession(self, context)


class ReconsiderSession(SearchedSession):
    def __init__(self, strategy: Reconsider, context: GenerationContext) -> None:
        super().__init__(context, "reconsider")
        self.strategy = strategy

    def search(self) -> list[Answer]:
        call, media = captured(self.context)
        channels = [modality_channel(media, call.mask), *split_channels(self.context, call.mask, call.front)]
        found: list[Answer] = []
        for row in range(media.shape[0]):
            own = [replace(c, prompt=c.prompt[row : row + 1]) for c in channels]
            search = Search(self.strategy, self.context, call.row(row), own, row)
            search.run()
            self.width = search.width
            found.append([(t.id, t.detail) for t in search.tokens])
        return found


@dataclass(frozen=True)
class Token:
    """A token of an answer, and whether the sentence could have ended instead (``could_end``)."""

    id: int
    detail: Detail
    could_end: bool


class Search:
    """Search for the answer of one row."""

    def __init__(
        self, strategy: Reconsider, context: GenerationContext, call: DecoderCall, channels: list[Channel], row: int
    ) -> None:
        self.strategy, self.context, self.call, self.channels, self.row = strategy, context, call, channels, row
        rule = flag_rule(calibration_of(context.adapter, strategy.composite))
        self.threshold = rule["threshold"] if strategy.threshold is None else strategy.threshold
        self.least = self.threshold - (rule["margin"] if strategy.margin is None else strategy.margin)
        self.processed = for_row(context.sampler.processors, row, context.ids.shape[0])
        self.stopping = library_criteria(context.stopping)
        self.tokens: list[Token] = []
        self.sentence = 0  # index of the current sentence's first token
        self._open([])
        self.vocabulary = Vocabulary.of(context.adapter, strategy.name, self.width)

    @property
    def width(self) -> int:
        return int(self.logits.shape[-1])

    @property
    def ids(self) -> Tensor:
        """Prompt and current answer ``[1, T]``."""
        tokens = self.context.ids.new_tensor([[t.id for t in self.tokens]])
        return torch.cat([self.context.ids[self.row : self.row + 1], tokens], dim=-1)

    def _open(self, tokens: list[int]) -> None:
        """Open a stream and append ``tokens``; used instead of rewinding, which recurrent layers do not support."""
        self.dual = open_stream(self.context, self.call, self.channels, self.strategy.composite)
        self._measure(None)
        for token in tokens:
            self._measure(token)

    def _measure(self, token: int | None) -> None:
        """Append ``token`` to the stream and store the next logits ``[V]``, Phi_M, and Phi of each modality."""
        ids = None if token is None else self.context.ids.new_tensor([token])
        logits, phi, split = measure(self.dual, ids)
        self.logits, self.phi, self.split = logits[0], phi[0], {k: v[0] for k, v in split.items()}

    def run(self) -> None:
        while not self.tokens or not bool(self.stopping(self.ids, None)[0]):
            scores = self.processed(self.ids, self.logits[None])[0]
            choice = self._supported(scores)
            if choice is None and (end := self._last_end()) is not None:
                del self.tokens[end:]
                self._open([t.id for t in self.tokens])
                scores = self.processed(self.ids, self.logits[None])[0]
                choice = int(scores.masked_fill(~self.vocabulary.ends, float("-inf")).argmax())
            self._append(int(scores.argmax()) if choice is None else choice, scores)

    def _supported(self, scores: Tensor) -> int | None:
        """Return the model's choice if it is supported or not checked, else the likeliest supported token, or None."""
        choice = int(scores.argmax())
        begins = self.vocabulary.begins(self.tokens[-1].id if self.tokens else None)
        possible = begins & (torch.softmax(self.logits, dim=-1) >= self.strategy.possible) & ~torch.isneginf(scores)
        z = z_score(self.phi, vocabulary(self.context, self.phi, self.logits))
        others = possible.clone()
        others[choice] = False
        if not bool(begins[choice]) or not bool(others.any()) or not bool(z[choice] < self.threshold):
            return choice
        others[[t.id for t in self.tokens[self.sentence :]]] = False  # avoids "a pig and a pig"
        supported = others & (z >= self.least)
        return int(scores.masked_fill(~supported, float("-inf")).argmax()) if bool(supported.any()) else None

    def _last_end(self) -> int | None:
        """Return the last index at which the sentence could have ended, or None."""
        indices = range(len(self.tokens) - 1, self.sentence, -1)
        return next((n for n in indices if self.tokens[n].could_end), None)

    def _append(self, token: int, scores: Tensor) -> None:
        rows = (self.row + 1, -1)
        explain = explainer(
            self.context, self.logits.expand(*rows), self.phi.expand(*rows),
            split={k: v.expand(*rows) for k, v in self.split.items()}, composite=self.strategy.composite,
        )  # fmt: skip
        detail = explain(self.row, token)
        chances = torch.softmax(self.logits, dim=-1)
        could_end = self.vocabulary.ends & (chances >= self.strategy.possible) & ~torch.isneginf(scores)
        changed = token != int(scores.argmax())
        self.tokens.append(Token(token, replace(detail, intervened=changed), bool(could_end.any())))
        if bool(self.vocabulary.ends[token]):
            self.sentence = len(self.tokens)
        self._measure(token)


reconsider = Reconsider
STRATEGIES = {"reconsider": Reconsider}
