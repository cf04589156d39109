"""Results of auditing one answer: scores of its tokens, words and sentences, and their conversion to JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from limelight.auditing.rows import Row
from limelight.report.words import (
    Sentence,
    Word,
    sentences,
    word_contributions,
    word_flagged,
    word_grounding,
    words,
)
from limelight.types import Generation, Interval, Prompt, Region, Span, Step


@dataclass(frozen=True)
class Audit:
    """Scores of one finished answer.

    Attributes:
        row: the audited row.
        generation: prompt and answer with one step per token, including thoughts.
        answered: for each step, whether it belongs to the answer rather than to thoughts (:mod:`limelight.thinking`).
        text: the answer without thoughts.
    """

    row: Row
    generation: Generation
    answered: tuple[bool, ...]
    text: str

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def steps(self) -> tuple[Step, ...]:
        """Steps of all tokens, including thoughts."""
        return self.generation.steps

    @cached_property
    def answer(self) -> Generation:
        """The answer without thoughts."""
        kept = tuple(s for s, own in zip(self.steps, self.answered, strict=True) if own)
        return replace(self.generation, text=self.text, token_ids=tuple(s.token for s in kept), steps=kept)

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """Words of :attr:`answer`, without punctuation."""
        return tuple(w for w in words(self.answer) if not w.punctuation)

    @cached_property
    def sentences(self) -> tuple[Sentence, ...]:
        """Sentences of :attr:`answer`."""
        return sentences(self.answer)

    @cached_property
    def flagged(self) -> tuple[Word, ...]:
        """The flagged words."""
        return tuple(w for w in self.words if word_flagged(self.answer, w))

    @cached_property
    def margin(self) -> float | None:
        """The smallest margin of its sentences: 0 if the media support every word as well as its rivals, negative if they
        support another plausible word more; None without media."""
        return min((s.margin for s in self.sentences if s.margin is not None), default=None)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Statistics of the whole answer: counts, means over words (grounding) and over tokens (log-probability)."""
        own = self.answer.steps
        scores = [z for w in self.words if (z := word_grounding(self.answer, w)) is not None]
        logprobs = [s.logprob for s in own if math.isfinite(s.logprob)]
        return {
            "tokens": len(own),
            "thought_tokens": len(self.steps) - len(own),
            "words": len(self.words),
            "sentences": len(self.sentences),
            "flagged_words": len(self.flagged),
            "flagged_sentences": sum(s.flagged for s in self.sentences),
            "grounding": mean(scores),
            "least_grounding": min(scores, default=None),
            "margin": self.margin,
            "logprob": mean(logprobs),
            "contributions": rounded(self.answer.contributions()),
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values, as used by the run's log, the server and the command line."""
        return {
            "summary": rounded(self.summary),
            "tokens": [_step(s, own) for s, own in zip(self.steps, self.answered, strict=True)],
            "words": [word_row(self, w) for w in self.words],
            "sentences": [sentence_row(s) for s in self.sentences],
            "flag": dict(self.generation.flag),
        }


def word_row(audit: Audit, word: Word) -> dict[str, Any]:
    """Return a word's scores: grounding and flag are those of its deciding token, its log-probability is the sum."""
    steps = audit.answer.steps[word.start : word.stop]
    return {
        "text": word.text,
        "grounding": rounded(word_grounding(audit.answer, word)),
        "flagged": word_flagged(audit.answer, word),
        "p_supported": rounded(next((s.p_supported for s in steps if s.grounding is not None), None)),
        "logprob": rounded(sum(s.logprob for s in steps)),
        "contributions": rounded(word_contributions(audit.answer, word)),
        "start": word.start,
        "stop": word.stop,
    }


def sentence_row(sentence: Sentence) -> dict[str, Any]:
    return {k: rounded(getattr(sentence, k)) for k in ("text", "grounding", "margin", "flagged", "start", "stop")}


_OF_STEPS = (
    *("logprob", "grounding", "rival_grounding", "support", "grounding_by_modality", "flagged", "p_supported"),
    *("contributions", "plain", "candidates"),
)


def _step(step: Step, answered: bool) -> dict[str, Any]:
    measured = {k: rounded(getattr(step, k)) for k in _OF_STEPS}
    return {"id": step.token, "text": step.text, **measured, **({} if answered else {"thought": True})}


def step_of(row: Mapping[str, Any]) -> Step:
    """Convert a token's row back to a step; numbers have six digits."""
    measured = {k: row[k] for k in _OF_STEPS if k in row}
    measured["logprob"] = _or_nan(row["logprob"])
    measured["candidates"] = tuple((t, text, _or_nan(x), _or_nan(y)) for t, text, x, y in row["candidates"])
    return Step(int(row["id"]), row["text"], **measured)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def layout(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt's tokens and spans as plain values, which a page needs in addition to the media."""
    text = [[prompt.tokens[i] for i in range(s.start, s.stop)] for s in prompt.spans if s.modality == "text"]
    return {"text": text, "spans": [{k: v for k, v in asdict(s).items() if v is not None} for s in prompt.spans]}


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """Convert the result of :func:`layout`, also after JSON, to a prompt that can be displayed but not run."""
    spans = tuple(_span(s) for s in row["spans"])
    text = iter(row["text"])
    tokens = [t for s in spans for t in (next(text) if s.modality == "text" else [f"<{s.modality}>"] * len(s))]
    return Prompt({}, tuple(tokens), spans)


def _span(row: Mapping[str, Any]) -> Span:
    values = dict(row)
    if "grid" in values:
        values["grid"] = tuple(values["grid"])
    if "region" in values:
        region = values["region"]
        frames, tiles = (tuple(map(tuple, region[k])) for k in ("frames", "tiles"))
        values["region"] = Region(region["source"], tuple(region["size"]), tuple(region["box"]), frames, tiles)
    if "interval" in values:
        values["interval"] = Interval(**values["interval"])
    return Span(**values)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def rounded(value: Any) -> Any:
    """Round a float, or those in mappings and sequences, to six digits; None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
