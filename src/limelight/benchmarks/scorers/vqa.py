"""Soft accuracy of short answers by agreement with ten people (VQA, TextVQA), as the EvalAI script computes it.

    an answer that k of the 10 people gave has the mean over all choices of 9 of them of min(1, matches / 3)

Source: Antol et al., "VQA: Visual Question Answering", ICCV 2015; the normalisation is that of TextVQA's script
(EvalAIAnswerProcessor), which LLaVA's evaluation runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from limelight.benchmarks.scorers.measure import Block, block, count, share
from limelight.benchmarks.scorers.yes_no import without_punctuation
from limelight.types import Record

_NUMBERS = {"none": "0"} | {
    word: str(n)
    for n, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
_ARTICLES = frozenset({"a", "an", "the"})
# written without one of their apostrophes, these words are corrected ("she's", "we'll" or "i'm" are not among them)
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've "
    "he's how'd how'll how's i'd've i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't "
    "would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_CORRECTED = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTIONS.split() for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the original's, in this direction


def normalised(answer: str) -> str:
    """Lower case; without commas, question marks and other punctuation; numbers as digits; no articles."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(w, w) for w in text.lower().split()]
    return " ".join(_CORRECTED.get(w, w) for w in words if w not in _ARTICLES)


def agreement(answer: str, people: Sequence[str]) -> float:
    """Return the accuracy of an answer in [0, 1], given the answers of several people."""
    mine, n = normalised(answer), len(people)
    k = sum(normalised(p) == mine for p in people)
    # leaving out one of the k people who agree leaves k - 1 matches, leaving out another one k
    return (k * min(1.0, (k - 1) / 3) + (n - k) * min(1.0, k / 3)) / n if k else 0.0


def soft_accuracy(name: str, records: Sequence[Record]) -> Block:
    """A block of questions whose ``target`` is the list of people's answers."""
    rows = [
        (r.id, {"n": 1.0, "score": agreement(r.answer, r.target), "empty": float(not r.answer.strip())})
        for r in records
    ]
    measures = [share("accuracy", "score", "n"), count("empty", "empty")]
    return block(name, rows, measures, [str(r.meta.get("cluster", r.id)) for r in records], ("n", "score", "empty"))
