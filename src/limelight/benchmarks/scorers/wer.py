"""Word error rate by jiwer, and words invented on audio without speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from limelight.benchmarks.extras import need
from limelight.benchmarks.scorers.measure import Block, block, count, share
from limelight.types import Record


@cache
def _jiwer() -> Any:
    return need("jiwer", "bench")


@cache
def _basic() -> Any:
    j = _jiwer()
    return j.Compose(
        [
            j.ToLowerCase(),
            j.SubstituteRegexes({r"[-‐-―]": " "}),
            j.RemovePunctuation(),
            j.RemoveMultipleSpaces(),
            j.Strip(),
        ]
    )


def basic(text: str) -> str:
    """Normalise to lower case, dashes to spaces, no punctuation, single spaces; numbers are unchanged."""
    return str(_basic()(text)) if text.strip() else ""


def raw(text: str) -> str:
    """Return the text unchanged except for single spaces."""
    return " ".join(text.split())


PARSERS: Mapping[str, Callable[[str], str]] = {"basic": basic, "raw": raw}

_SPEECH = ("words", "substitutions", "deletions", "insertions", "errors", "clips", "correct")
_QUIET = ("clips", "invented", "with_words", "minutes", "correct")


def transcript_columns(reference: str, hypothesis: str) -> dict[str, float]:
    """Return the columns of one utterance; both texts are normalised and the reference is not empty."""
    out = _jiwer().process_words(reference, hypothesis)
    errors = out.substitutions + out.deletions + out.insertions
    return {
        "words": float(len(reference.split())),
        "substitutions": float(out.substitutions),
        "deletions": float(out.deletions),
        "insertions": float(out.insertions),
        "errors": float(errors),
        "clips": 1.0,
        "correct": float(errors == 0),
    }


def invented_words(reference: str, hypothesis: str) -> list[bool]:
    """Return for each word of the hypothesis whether it is substituted or inserted in the alignment; texts are normalised."""
    words = hypothesis.split()
    if not reference or not words:
        return [True] * len(words)
    wrong = [True] * len(words)
    for chunk in _jiwer().process_words(reference, hypothesis).alignments[0]:
        if chunk.type == "equal":
            wrong[chunk.hyp_start_idx : chunk.hyp_end_idx] = [False] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
    return wrong


def speech(name: str, records: Sequence[Record], parser_name: str = "basic") -> Block:
    """Word error rate (errors over reference words: it can exceed 100 %) and its three components, on clips with speech."""
    norm = PARSERS[parser_name]
    rows = [(r.id, transcript_columns(norm(str(r.target)), norm(r.answer))) for r in records]
    measures = [
        share("WER", "errors", "words", higher_is_better=False),
        share("substitutions", "substitutions", "words", higher_is_better=False),
        share("deletions", "deletions", "words", higher_is_better=False),
        share("insertions", "insertions", "words", higher_is_better=False),
        share("exact", "correct", "clips"),
    ]
    return block(name, rows, measures, [str(r.meta.get("cluster", r.id)) for r in records], _SPEECH)


def quiet(name: str, records: Sequence[Record], parser_name: str = "basic") -> Block:
    """Words invented on clips without speech: words per clip, clips with any, words per minute where lengths are known."""
    norm = PARSERS[parser_name]
    rows = []
    for r in records:
        n = float(len(norm(r.answer).split()))
        minutes = float(r.meta.get("seconds") or 0.0) / 60
        rows.append(
            (
                r.id,
                {"clips": 1.0, "invented": n, "with_words": float(n > 0), "minutes": minutes, "correct": float(n == 0)},
            )
        )
    measures = [
        share("invented words per clip", "invented", "clips", unit="", higher_is_better=False),
        share("clips with invented words", "with_words", "clips", higher_is_better=False),
        count("invented words", "invented"),
    ]
    if rows and all(row["minutes"] > 0 for _, row in rows):
        measures.append(share("invented words per minute", "invented", "minutes", unit="", higher_is_better=False))
    return block(name, rows, measures, (), _QUIET)
