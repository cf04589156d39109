"""Results as plain values for JSON, and as tables."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from limelight.errors import MissingExtraError, SettingError
from limelight.report.input_time import STEP, over_time, sounds_of
from limelight.report.word_times import word_interval
from limelight.report.words import (
    Word,
    perceptual,
    sentences,
    text_words,
    word_contributions,
    word_flagged,
    word_relevance,
    word_shares,
    word_support,
    words,
)
from limelight.types import MODALITIES, Generation, Relevance, TakenView


def document(generation: Generation, *, scores: bool = False) -> dict[str, Any]:
    """Convert a generation to plain values: text, shares, words and steps; with ``scores`` every position's relevance.

    ``shares`` are parts of the relevance (backward pass), ``contributions`` of the logit (meter); either is {} where it
    was not computed.
    """
    rows = [(w, word_relevance(generation, w), word_shares(generation, w)) for w in words(generation)]
    out: dict[str, Any] = {
        "text": generation.text,
        "strategy": generation.strategy,
        "settings": {k: plain_value(v) for k, v in generation.settings.items()},
        "shares": rounded(generation.shares()),
        "contributions": rounded(generation.contributions()),
        "flag": plain_value(dict(generation.flag)),
        "sentences": [
            {
                "text": s.text,
                "tokens": [s.start, s.stop],
                "grounding": number(s.grounding),
                "margin": number(s.margin),
                "flagged": s.flagged,
            }
            for s in sentences(generation)
        ],
        "words": [
            {
                "text": w.text,
                "tokens": [w.start, w.stop],
                "perceptual_share": number(perceptual(shares)),
                "shares": rounded(shares),
                "contributions": rounded(word_contributions(generation, w)),
                **support_of(generation, w),
                **(summary(r, scores=scores) if r is not None else {}),
            }
            for w, r, shares in rows
        ],
        "steps": [
            {
                "token": s.token,
                "text": s.text,
                "logprob": number(s.logprob),
                "intervened": s.intervened,
                "plain": s.plain,
                "flagged": s.flagged,
                "grounding": number(s.grounding),
                "rival_grounding": number(s.rival_grounding),
                "support": number(s.support),
                "grounding_by_modality": rounded(s.grounding_by_modality),
                "p_supported": number(s.p_supported),
                "shares": rounded(s.shares),
                "contributions": rounded(s.contributions),
                "losses": {k: [number(x) for x in v] for k, v in s.losses.items()},
                "candidates": [[i, t, number(logit), number(phi)] for i, t, logit, phi in s.candidates],
                **({"views": [view_document(v) for v in s.views]} if s.views else {}),
            }
            for s in generation.steps
        ],
    }
    if scores:
        out["tokens"] = list(generation.prompt.tokens)
        out["spans"] = [
            {
                "start": s.start,
                "stop": s.stop,
                "modality": s.modality,
                "grid": s.grid,
                "margin": s.margin,
                "seconds": s.seconds,
                "region": None if s.region is None else asdict(s.region),
                "interval": None if s.interval is None else asdict(s.interval),
            }
            for s in generation.prompt.spans
        ]
    return out


def view_document(view: TakenView) -> dict[str, Any]:
    """A view that was taken, as plain values."""
    found = asdict(view)
    rest = {"margin": number(view.margin), "evidence": number(view.evidence), "weight": number(view.weight)}
    return {**found, "box": view.box and [round(x, 1) for x in view.box], **rest}


def support_of(generation: Generation, word: Word) -> dict[str, Any]:
    """A word's grounding and flag, as JSON documents tell them; None where no meter ran."""
    known = word_support(generation, word)
    each = {k.removeprefix("grounding "): number(v) for k, v in known.items() if k.startswith("grounding ")}
    return {
        "grounding": number(known.get("grounding")),
        "p_supported": number(known.get("p_supported")),
        "flagged": word_flagged(generation, word),
        **({"grounding_by_modality": each} if each else {}),
    }


def summary(relevance: Relevance, *, scores: bool = False, top: int = 8) -> dict[str, Any]:
    """Return totals per modality and the most relevant positions; with ``scores`` all of them."""
    present = [m for m in MODALITIES if relevance.spans_of(m)]
    out: dict[str, Any] = {
        "logit": number(relevance.logit),
        "relevance": {m: number(relevance.total(m)) for m in present},
        "top": [[i, token, number(score)] for i, token, score in relevance.top(top)],
    }
    place = word_interval(relevance)
    if relevance.spans_of("audio"):
        out["interval"] = [number(t) for t in place] if place is not None else None
    if scores:
        out["scores"] = [number(v) for v in relevance.scores.tolist()]
    if relevance.media_inputs:
        out["inputs"] = inputs_of(relevance)
    return out


def inputs_of(relevance: Relevance) -> dict[str, Any]:
    """Return the relevance that was carried on through the encoder: by media tensor its shape and sum, of sounds over time."""
    found: dict[str, Any] = {}
    for name, values in relevance.media_inputs.items():
        found[name] = {"shape": list(values.shape), "relevance": number(float(values.sum()))}
        if name in relevance.media_times:
            found[name] |= {"seconds": STEP, "over_time": _over_time(relevance)}
    return found


def _over_time(relevance: Relevance) -> list[list[float | None]] | None:
    """Return the relevance of each sound over its time; None where windows cannot be assigned to sounds."""
    try:
        count = len(sounds_of(relevance))
    except SettingError:
        return None
    return [[number(v) for v in over_time(relevance, STEP, i).tolist()] for i in range(count)]


def number(value: float | None) -> float | None:
    """Round to six significant digits; None for values that JSON does not support."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def rounded(shares: Any) -> dict[str, float | None]:
    return {k: number(v) for k, v in dict(shares).items()}


def plain_value(value: Any) -> Any:
    """Convert a setting to plain JSON."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain_value(v) for k, v in value.items()}
    return str(value)


def to_dict(value: Any, *, scores: bool = False) -> dict[str, Any]:
    """Return a Generation or a Comparison as plain values; see :meth:`limelight.Generation.to_dict`."""
    if isinstance(value, Generation):
        return document(value, scores=scores)
    return {
        "answers": [document(a, scores=scores) for a in value.answers],
        "decisions": [None if d is None else decision(d, value.prompt.template) for d in value.decisions],
    }


def decision(found: Relevance, template: Any = ()) -> dict[str, Any]:
    """Return the relevance of one word rather than another as plain values."""
    return {
        "word": found.target_token.strip(),
        "rather_than": found.against_token.strip(),
        "shares": rounded(found.shares()),
        **summary(found),
        "text": [[text, number(value)] for text, value in text_words(found, template)[:8]],
    }


def to_pandas(value: Any) -> Any:
    """Return a Relevance, a Generation or a Comparison as a DataFrame; see :meth:`limelight.Generation.to_pandas`."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingExtraError("pandas", "pandas") from error
    if isinstance(value, Relevance):
        return pandas.DataFrame(_positions(value))
    answers = [value] if isinstance(value, Generation) else value.answers
    rows = [{"strategy": a.strategy, **row} for a in answers for row in _tokens(a)]
    return pandas.DataFrame(rows)


def _positions(relevance: Relevance) -> list[dict[str, Any]]:
    scores = relevance.scores.tolist()
    return [
        {
            "position": i,
            "token": relevance.tokens[i],
            "modality": s.modality,
            "relevance": scores[i],
            "template": i in relevance.template,
        }
        for s in relevance.spans
        for i in range(s.start, s.stop)
    ]


def _tokens(generation: Generation) -> list[dict[str, Any]]:
    word_of = {i: w.text for w in words(generation) for i in range(w.start, w.stop)}
    return [
        {
            "token": s.token,
            "text": s.text,
            "word": word_of.get(i),
            "logprob": s.logprob,
            "grounding": s.grounding,
            "flagged": s.flagged,
            "intervened": s.intervened,
            **{f"share_{m}": v for m, v in s.shares.items()},
            **{f"contribution_{m}": v for m, v in s.contributions.items()},
        }
        for i, s in enumerate(generation.steps)
    ]
