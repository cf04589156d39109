"""Detection of invented words by per-token scores, for answers that have them in ``evidence``.

    unit      first mention of an object (captions), the answer (yes/no), a word (transcripts)
    positive  invented: not in the image, wrong, not spoken
    score     support of the unit's token; ``Reply.meta["evidence"]`` has one value per token for each name

Controls: ``position`` (the token's index in the answer) and ``word frequency`` (how often the model uses the word for
other media). AUROC is reported over all pairs and over pairs at like positions: later words are invented more often, so
a score that merely decreases along the answer does well only in the former.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from limelight.benchmarks.scorers.measure import WEIGHTS, Array, Block, Measure, Sums
from limelight.benchmarks.scorers.ranking import (
    auroc,
    average_precision,
    calibration_error,
    cross_fitted,
    false_positives,
    within,
)
from limelight.types import Record

Find = Callable[[str], Iterable[tuple[str, int]]]
CONTROLS = ("position", "word frequency")
PAIR = ("log-probability", "z")  # combined by a logistic regression on other media
POSITION_BINS = 5


@dataclass(frozen=True)
class Unit:
    """One unit of an answer: ``position``: token index in the answer; ``scores``: those of its token (for several tokens see
    :func:`scores_at`)."""

    id: str
    cluster: str
    split: str
    word: str
    position: int
    invented: bool
    scores: Mapping[str, float]


def words_among(names: Iterable[str]) -> Find:
    """Return a function that finds the words of a text that are among ``names``, ignoring case, with their offsets."""
    known = frozenset(names)

    def find(text: str) -> Iterator[tuple[str, int]]:
        for match in re.finditer(r"[a-z]+", text.lower()):
            if match.group() in known:
                yield match.group(), match.start()

    return find


def carries(records: Iterable[Record]) -> bool:
    """Whether any answer has per-token scores."""
    return any(r.meta.get("evidence") for r in records)


def first_mentions(record: Record, find: Find, truth: Iterable[str]) -> Iterator[Unit]:
    """Yield one unit per object: its first mention in a caption. ``find``: returns the objects of a text and their offsets."""
    evidence, known, seen = record.meta.get("evidence"), frozenset(truth), set[str]()
    for name, at in find(evidence["text"]) if evidence else ():
        if name not in seen:
            seen.add(name)
            yield _unit(record, name, at, at + 1, name not in known)


def answer_unit(record: Record, predicted: str | None, gold: str) -> Iterator[Unit]:
    """Yield the word yes or no of an answer; nothing where it was not parsed."""
    evidence = record.meta.get("evidence")
    found = re.search(rf"\b{predicted}\b", evidence["text"], re.IGNORECASE) if evidence and predicted else None
    if found is not None:
        yield _unit(record, str(predicted), found.start(), found.start() + 1, predicted != gold)


def spoken_words(
    record: Record, align: Callable[[str, str], Sequence[bool]], norm: Callable[[str], str]
) -> Iterator[Unit]:
    """Yield one unit per word of a transcript. ``align``: returns which of its normalised words were not spoken."""
    evidence = record.meta.get("evidence")
    if not evidence:
        return
    words = [(w, m) for m in re.finditer(r"[^\s\u002d\u2010-\u2015]+", evidence["text"]) if (w := norm(m.group()))]
    wrong = align(norm(str(record.target)), " ".join(w for w, _ in words))
    for (word, match), invented in zip(words, wrong, strict=True):
        yield _unit(record, word, match.start(), match.end(), invented)


def scores_at(evidence: Mapping[str, Any], start: int, stop: int) -> tuple[int, dict[str, float]]:
    """Return the index of the first token that overlaps text [start, stop), and the mean scores over all that do."""
    ends = evidence["ends"]
    first = next((i for i, end in enumerate(ends) if end > start), len(ends) - 1)
    last = next((i for i, end in enumerate(ends) if end >= stop), len(ends) - 1)
    return first, {
        name: math.fsum(v[first : last + 1]) / (last + 1 - first) if None not in v[first : last + 1] else math.nan
        for name, v in evidence["scores"].items()
    }


def _unit(record: Record, word: str, start: int, stop: int, invented: bool) -> Unit:
    position, scores = scores_at(record.meta["evidence"], start, stop)
    cluster, split = str(record.meta.get("cluster", record.id)), str(record.meta.get("split", ""))
    probe: Mapping[str, float] = record.meta.get("probe") or {}
    ceiling = {"probe": float(probe[word])} if word in probe else {}
    return Unit(f"{record.id}#{word}@{start}", cluster, split, word, position, invented, {**scores, **ceiling})


def detection(name: str, units: Sequence[Unit], *, by_split: bool = True) -> list[Block]:
    """Build one block per score (``NAME/SCORE``), for paired comparisons, and with several splits one for each
    (``SPLIT/SCORE``, AUROC only). No block where all units are invented or none is."""
    units = list(units)
    if len({u.invented for u in units}) < 2:
        return []
    blocks = _blocks(name, units, MEASURES)
    splits = dict.fromkeys(u.split for u in units)
    for split in splits if by_split and len(splits) > 1 else ():
        own = [u for u in units if u.split == split]
        if len({u.invented for u in own}) == 2:
            blocks += _blocks(split, own, MEASURES[:2])
    return blocks


def _blocks(name: str, units: Sequence[Unit], measures: tuple[Measure, ...]) -> list[Block]:
    ids, clusters = tuple(u.id for u in units), tuple(u.cluster for u in units)
    invented = np.array([float(u.invented) for u in units])
    groups = position_bins(np.array([u.position for u in units]))
    risks = risks_of(units)
    if all(p in risks for p in PAIR):
        both = np.stack([risks[p] for p in PAIR], axis=1)
        together = cross_fitted(both, invented, np.array(clusters))
        risks |= {} if np.isnan(together).any() else {" + ".join(PAIR): together}
    blocks = []
    for score, risk in risks.items():
        chance = cross_fitted(risk[:, None], invented, np.array(clusters))
        columns = {"risk": risk, "invented": invented, "groups": groups, "chance": chance}
        blocks.append(Block(f"{name}/{score}", ids, columns, measures, clusters))
    return blocks


def risks_of(units: Sequence[Unit]) -> dict[str, Array]:
    """Map each score to the risk ``[n]`` that each unit is invented: negated support, and the controls. Scores missing for
    any unit are omitted."""
    names = dict.fromkeys(k for u in units for k in u.scores)
    risks = {k: -np.array([u.scores.get(k, math.nan) for u in units]) for k in names}
    risks = {k: v for k, v in risks.items() if np.isfinite(v).all()}
    counts: Counter[str] = Counter(u.word for u in units)
    here: Counter[tuple[str, str]] = Counter((u.cluster, u.word) for u in units)
    elsewhere = [counts[u.word] - here[u.cluster, u.word] for u in units]
    return {
        **risks,
        "position": np.array([float(u.position) for u in units]),
        "word frequency": -np.log1p(np.array(elsewhere, dtype=np.float64)),
    }


def position_bins(positions: Array, bins: int = POSITION_BINS) -> Array:
    """Assign positions to bins of about equal size; with few distinct positions, one bin each."""
    different = np.unique(positions)
    if len(different) <= bins:
        return np.searchsorted(different, positions).astype(np.float64)
    edges = np.unique(np.quantile(positions, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, positions, side="left").astype(np.float64)


def _ranked(
    name: str, function: Callable[..., Array], *columns: str, unit: Literal["%", ""] = "", better: bool = True
) -> Measure:
    def formula(sums: Sums) -> Array:
        return function(sums[WEIGHTS], *(sums[c] for c in columns))

    return Measure(name, formula, unit, better, ranked=True)


MEASURES = (
    _ranked("AUROC", auroc, "risk", "invented"),
    _ranked("AUROC at like positions", within, "risk", "invented", "groups"),
    _ranked("AUPR", average_precision, "risk", "invented"),
    _ranked("FPR at 95 % recall", false_positives, "risk", "invented", better=False),
    _ranked("ECE", calibration_error, "chance", "invented", better=False),
)
