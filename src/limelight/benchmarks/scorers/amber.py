"""AMBER: hallucinated objects in descriptions, and yes/no questions with "no" as the positive class.

Generative measures over all responses (the official script sums before it divides):
    CHAIR = vocabulary nouns that are neither true nor safe / vocabulary nouns
    Cover = annotated objects that are mentioned / annotated objects
    Hal   = responses with a hallucinated noun / responses
    Cog   = mentioned objects of the "likely to be hallucinated" list / length of that list
    AMBER = ((100 - CHAIR) + F1) / 2

Source: Wang et al., "AMBER", arXiv 2311.07397, and inference.py. Differs from it: nouns are found by TextBlob's tagger
instead of NLTK's downloaded one, and near-synonyms by relation.json alone; the script also accepts any word whose
spaCy vector is within 0.8 of a true one, so its CHAIR is a little lower and its Cover a little higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limelight.benchmarks.scorers import words
from limelight.benchmarks.scorers.measure import Array, Block, Measure, Sums, block, ratio, share
from limelight.benchmarks.scorers.yes_no import PARSERS, columns_of
from limelight.errors import DataError
from limelight.types import Record


@dataclass(frozen=True)
class Vocabulary:
    """relation.json (object -> words that may stand for it) and safe_words.txt."""

    related: Mapping[str, Sequence[str]]
    safe: frozenset[str]
    known: words.Known

    @classmethod
    def build(cls, related: Mapping[str, Sequence[str]], safe_words: str) -> Vocabulary:
        safe = frozenset(w.strip() for w in safe_words.splitlines() if w.strip())
        return cls(related, safe, words.Known.of({*related, *(w for ws in related.values() for w in ws)}))

    def nouns(self, response: str) -> list[str]:
        """Return the vocabulary nouns of a response, in the singular, in order."""
        found = [self.known.base(w) for w in words.nouns(response)]
        return [w for w in found if w in self.known.words]

    def named_by(self, noun: str, objects: Sequence[str]) -> int | None:
        """Return the index of the first object that the noun refers to: by a related word, else by its own name."""
        lost = [o for o in objects if o not in self.related]
        if lost:
            raise DataError(
                f"annotated objects {lost} are not in relation.json", hint="use two files from the same release"
            )
        for i, o in enumerate(objects):
            if noun in self.related[o]:
                return i
        return objects.index(noun) if noun in objects else None


def description_columns(
    response: str, truth: Sequence[str], likely: Sequence[str], vocabulary: Vocabulary
) -> dict[str, float]:
    """Return the columns of one description."""
    covered, imagined, wrong = set(), set(), 0
    nouns = vocabulary.nouns(response)
    for noun in nouns:
        if noun in vocabulary.safe:
            continue
        if (i := vocabulary.named_by(noun, truth)) is not None:
            covered.add(i)
            continue
        if (i := vocabulary.named_by(noun, likely)) is not None:
            imagined.add(i)
        wrong += 1
    return {
        "responses": 1.0,
        "nouns": float(len(nouns)),
        "wrong": float(wrong),
        "with_hallucination": float(wrong > 0),
        "covered": float(len(covered)),
        "true": float(len(truth)),
        "imagined": float(len(imagined)),
        "likely": float(len(likely)),
        "correct": float(wrong == 0),
    }


_WORDS = ("responses", "nouns", "wrong", "with_hallucination", "covered", "true", "imagined", "likely", "correct")
_QA = ("n", "tp", "fp", "fn", "lost_positive")


def generative(records: Sequence[Record], vocabulary: Vocabulary, name: str = "generative") -> Block:
    """CHAIR, Cover, Hal and Cog. ``record.target`` has ``truth`` and ``hallu``, lists of objects."""
    rows = [(r.id, _describe(r, vocabulary)) for r in records]
    measures = [
        share("CHAIR", "wrong", "nouns", higher_is_better=False),
        share("Cover", "covered", "true"),
        share("Hal", "with_hallucination", "responses", higher_is_better=False),
        share("Cog", "imagined", "likely", higher_is_better=False),
    ]
    return block(name, rows, measures, [str(r.meta.get("cluster", r.id)) for r in records], _WORDS)


def amber_score(
    descriptions: Sequence[Record], questions: Sequence[Record], vocabulary: Vocabulary, parser_name: str = "exact"
) -> Block:
    """The AMBER score, in [0, 100], of descriptions and yes/no questions together."""

    def score(s: Sums) -> Array:
        chair = ratio(s["wrong"], s["nouns"])
        f1 = ratio(2 * s["tp"], 2 * s["tp"] + s["fp"] + s["fn"] + s["lost_positive"])
        return 50 * (1 - chair + f1)

    rows = [(r.id, _describe(r, vocabulary)) for r in descriptions]
    rows += [
        (r.id, {k: v for k, v in columns_of(r, PARSERS[parser_name], "no").items() if k in _QA}) for r in questions
    ]
    clusters = [str(r.meta.get("cluster", r.id)) for r in (*descriptions, *questions)]
    return block("", rows, [Measure("AMBER score", score, "")], clusters, (*_WORDS, *_QA))


def _describe(record: Record, vocabulary: Vocabulary) -> dict[str, float]:
    return description_columns(record.answer, record.target["truth"], record.target["hallu"], vocabulary)
