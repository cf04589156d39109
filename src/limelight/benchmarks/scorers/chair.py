"""CHAIR: hallucinated objects in captions.

    CHAIR_s = captions with a hallucinated object / captions
    CHAIR_i = hallucinated mentions / object mentions          (mentions, not unique objects)
    recall  = unique true objects mentioned / true objects

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, and its script; recall from the script
that later papers on multimodal LLMs use.

Longer captions hallucinate more, so a decoder that merely stops early looks better. The same measures on the first
:data:`FIRST_WORDS` words of every caption, and the number of hallucinated mentions per 100 words, are adjusted for length; the
difference of two runs at equal length is in ``limelight.benchmarks.frontier``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from limelight.benchmarks.scorers import words
from limelight.benchmarks.scorers.measure import Array, Block, Measure, Sums, block, ratio, share
from limelight.errors import DataError
from limelight.types import Record

Rules = Literal["lvlm", "official"]
FIRST_WORDS = 50

_DOUBLE = (
    "motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,fire hydrant,stop sign,"
    "parking meter,suit case,sports ball,baseball bat,baseball glove,tennis racket,wine glass,hot dog,cell phone,"
    "mobile phone,teddy bear,hair drier,potted plant,bow tie,laptop computer,stove top oven,home plate"
)
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")


@dataclass(frozen=True)
class Lexicon:
    """The 80 COCO objects, their synonyms, and the rules that match the words of a caption to them.

    Two sets of rules are in use:
    ``official`` singularises every word by pattern.en's rules, as the script of 2018 does: it never matches "bus"
    ("bu") or "ties" ("ty").
    ``lvlm`` follows the script that LLaVA-era papers run (it also reports recall), which lemmatises instead: known
    words stay, their plurals become singular, and "train track" is not a train. That script lemmatises by part of
    speech, so that it counts "seated" as a chair and "tied" as a tie; this one does not.
    """

    nodes: Mapping[str, str]
    double: Mapping[str, str]
    known: words.Known
    rules: Rules

    @classmethod
    def parse(cls, synonyms: str, rules: Rules = "lvlm") -> Lexicon:
        """Parse the text of synonyms.txt: one object per line, words separated by ", ", the first one its name.

        Words are not stripped, as in the official scripts: an entry after two spaces (" motor bike") never matches.
        """
        groups = [line.strip().split(", ") for line in synonyms.splitlines() if line.strip()]
        if len(groups) < 2 or any(not g[0] for g in groups):
            raise DataError(
                "synonyms.txt should contain one object per line, words separated by ', '",
                hint="see limelight bench chair",
            )
        nodes = {word: g[0] for g in groups for word in g}
        double = {d: d for d in _DOUBLE.split(",")}
        double |= {f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")}
        double |= {f"passenger {v}": v for v in ("jet", "train")}
        double |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
        if rules == "official":
            return cls(nodes, double, words.Known(frozenset(), {}), rules)
        double["train track"] = "train track"
        known = [w for w in nodes if " " not in w] + [w for d in double for w in d.split()]
        return cls(nodes, double, words.Known.of(known), rules)

    def tokens(self, caption: str) -> list[str]:
        """Tokenise a caption into singular words, with two-word names merged."""
        text = words.tokens(caption.lower())
        if self.rules == "official":
            text = [words.singular(w) for w in text]
        else:
            text = [self.known.base(w) for w in text]
        merged, i = [], 0
        while i < len(text):
            pair = " ".join(text[i : i + 2])
            merged.append(self.double.get(pair, text[i]))
            i += 2 if pair in self.double else 1
        return [w for w in merged if w != "seat"] if "toilet" in merged and "seat" in merged else merged

    def mentions(self, caption: str) -> list[str]:
        """Return the object of every mention, in order: "two dogs and a puppy" gives dog, dog."""
        return [self.nodes[w] for w in self.tokens(caption) if w in self.nodes]

    def columns(self, caption: str, truth: frozenset[str]) -> dict[str, float]:
        """Return the columns of a caption about an image with the objects ``truth``."""
        words = self.tokens(caption)
        said, early = ([self.nodes[w] for w in part if w in self.nodes] for part in (words, words[:FIRST_WORDS]))
        return caption_columns(said, truth, len(words), early)

    def located(self, caption: str) -> list[tuple[str, int]]:
        """Return the object of every mention and its offset in the caption, in order.

        Words are runs of letters here, so that "dog's" counts too; :meth:`mentions` splits as the official scripts do.
        """
        base = words.singular if self.rules == "official" else self.known.base
        tokens = [(base(m.group()), m.start()) for m in re.finditer(r"[^\W\d_]+", caption.lower())]
        out, i = [], 0
        toilet = any(w == "toilet" for w, _ in tokens)
        while i < len(tokens):
            pair = " ".join(w for w, _ in tokens[i : i + 2])
            name = self.double.get(pair, tokens[i][0])
            if name in self.nodes and not (toilet and name == "seat"):
                out.append((self.nodes[name], tokens[i][1]))
            i += 2 if pair in self.double else 1
        return out

    def truth(self, names: Sequence[str], captions: Sequence[str]) -> frozenset[str]:
        """Return the objects of an image: its annotated categories and those its reference captions mention."""
        unknown = [n for n in names if n not in self.nodes]
        if unknown:
            raise DataError(f"categories {unknown} are not in synonyms.txt", hint="use the file for COCO's 80 objects")
        return frozenset(self.nodes[n] for n in names) | {m for c in captions for m in self.mentions(c)}


_COLUMNS = ("captions", "with_hallucination", "mentions", "hallucinated", "recalled", "true", "words")


def caption_columns(
    mentions: Sequence[str], truth: frozenset[str], length: int, early: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the columns of one caption of ``length`` words. ``early``: the mentions among its first words."""
    wrong = [m for m in mentions if m not in truth]
    lost = [] if early is None else [m for m in early if m not in truth]
    first = {} if early is None else {
        "early_mentions": float(len(early)),
        "early_hallucinated": float(len(lost)),
        "early_with": float(bool(lost)),
        "early_recalled": float(len(truth.intersection(early))),
    }  # fmt: skip
    return {
        **first,
        "captions": 1.0,
        "with_hallucination": float(bool(wrong)),
        "mentions": float(len(mentions)),
        "hallucinated": float(len(wrong)),
        "recalled": float(len(truth.intersection(mentions))),
        "true": float(len(truth)),
        "words": float(length),
        "correct": float(not wrong),
    }


def caption_block(name: str, rows: Sequence[tuple[str, Mapping[str, float]]], clusters: Sequence[str] = ()) -> Block:
    """CHAIR_s, CHAIR_i, recall and mean length in words, and the measures adjusted for length: shorter captions hallucinate
    less, so compare all of them."""

    def per_hundred(s: Sums) -> Array:
        return 100 * ratio(s["hallucinated"], s["words"])

    measures = [
        share("CHAIR_s", "with_hallucination", "captions", higher_is_better=False),
        share("CHAIR_i", "hallucinated", "mentions", higher_is_better=False),
        share("recall", "recalled", "true"),
        share("length", "words", "captions", unit="", higher_is_better=None),
        Measure("hallucinated per 100 words", per_hundred, "", higher_is_better=False),
    ]
    if any("early_mentions" in row for _, row in rows):
        cut = f"first {FIRST_WORDS} words"
        measures += [
            share(f"CHAIR_s, {cut}", "early_with", "captions", higher_is_better=False),
            share(f"CHAIR_i, {cut}", "early_hallucinated", "early_mentions", higher_is_better=False),
            share(f"recall, {cut}", "early_recalled", "true"),
        ]
    return block(name, rows, measures, clusters, (*_COLUMNS, "correct"))


def chair(records: Sequence[Record], lexicon: Lexicon, name: str = "") -> Block:
    """CHAIR metrics of captions. ``record.target`` has ``objects`` (category names) and ``captions`` (references)."""
    rows = []
    for r in records:
        truth = lexicon.truth(r.target["objects"], r.target["captions"])
        rows.append((r.id, lexicon.columns(r.answer, truth)))
    return caption_block(name, rows)
