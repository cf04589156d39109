"""English word processing for the caption scorers: tokens, singulars and plurals, tags; no downloads.

TextBlob maintains the inflection rules of pattern.en, which the CHAIR script of 2018 calls (pattern itself is no longer
released), and depends on NLTK, whose tokenizer that script uses. NLTK's ``word_tokenize`` needs a downloaded sentence
model; here its word tokenizer runs after an untrained Punkt sentence splitter, which differs only in abbreviations
("e.g.", "Mr.").
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from limelight.benchmarks.extras import need

EXTRA = "bench"


@cache
def _tokenizers() -> tuple[Any, Any]:
    return need("nltk.tokenize.punkt", EXTRA).PunktSentenceTokenizer(), need("nltk.tokenize", EXTRA).NLTKWordTokenizer()


@cache
def _inflect() -> Any:
    return need("textblob.en.inflect", EXTRA)


def tokens(text: str) -> list[str]:
    """Split a text into words and punctuation with NLTK's Penn Treebank tokenizer."""
    sentences, words = _tokenizers()
    return [w for s in sentences.tokenize(text) for w in words.tokenize(s)]


@cache
def singular(word: str) -> str:
    """Return pattern.en's singular of any lower-case word; it errs: "bus" becomes "bu" and "ties" "ty"."""
    return str(_inflect().singularize(word))


@dataclass(frozen=True)
class Known:
    """A vocabulary of nouns that recognises their plurals and, unlike ``singular``, never damages a word."""

    words: frozenset[str]
    plurals: Mapping[str, str]

    @classmethod
    def of(cls, nouns: Iterable[str]) -> Known:
        known = sorted(set(nouns))
        plural = {str(_inflect().pluralize(w, classical=c)): w for c in (True, False) for w in known}
        return cls(frozenset(known), {p: w for p, w in plural.items() if p not in known})

    def base(self, word: str) -> str:
        """Return the vocabulary word of which ``word`` is the singular or plural; else ``word`` itself."""
        if word in self.words:
            return word
        if word in self.plurals:
            return self.plurals[word]
        return one if (one := singular(word)) in self.words else word


def tags(text: str) -> list[tuple[str, str]]:
    """Tag words with Penn Treebank tags by TextBlob's lexicon tagger, without punctuation."""
    with warnings.catch_warnings():
        # TextBlob leaves its lexicon file open until it is collected
        warnings.simplefilter("ignore", ResourceWarning)
        return [(str(w), str(t)) for w, t in _tagger().tag(text, tokenize=True) if any(c.isalnum() for c in w)]


@cache
def _tagger() -> Any:
    return need("textblob.en.taggers", EXTRA).PatternTagger()


def nouns(text: str) -> list[str]:
    """Lower-case words used as nouns: tagged as nouns, or tagged as verbs but not after a pronoun, modal, "to" or adverb
    (the lexicon tagger takes "a bear", "the sink" and "some leaves" for verbs)."""
    found, before = [], "PRP"
    for word, tag in tags(text):
        if tag.startswith("NN") or (tag.startswith("VB") and before not in ("PRP", "MD", "TO", "RB", "WP", "WDT")):
            found.append(word.lower())
        before = tag
    return found
