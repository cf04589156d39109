"""Rating of answers (MMHal-Bench: 0 to 6; HaloQuest, EventHallusion: right or wrong) by a language model behind an
OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from limelight.benchmarks.extras import need
from limelight.benchmarks.scorers.measure import Block, block, count, share
from limelight.errors import LimelightError, SettingError
from limelight.thinking import MARKERS
from limelight.types import Record

Judge = Callable[[Record], str]

RUBRIC = """\
You grade an assistant's answer to a question about a picture that you cannot see. You are told what the picture \
contains and what a correct answer says. Judge two things: whether the answer is informative, and whether it \
hallucinates, that is, states something about the picture that the contents and the correct answer do not support. \
Knowledge about the world that does not contradict the picture is no hallucination.

Picture contents: {contents}

Question: {question}

Correct answer: {reference}

Answer to grade: {answer}

Explain briefly. Then end with one line of the form "Rating: N", where N is
6 for very informative with good analysis, no hallucination
5 for very informative, no hallucination
4 for somewhat informative, no hallucination
3 for not informative, no hallucination
2 for very informative, with hallucination
1 for somewhat informative, with hallucination
0 for not informative, with hallucination
"""


@dataclass(frozen=True)
class ChatJudge:
    """Grades answers through a chat completions endpoint.

    ``template`` may use {contents}, {question}, {reference} and {answer}. The default paraphrases
    MMHal-Bench's rubric: for ratings by the official prompt pass that prompt as ``template``.
    """

    base_url: str
    model: str
    api_key: str | None = None
    template: str = RUBRIC
    max_tokens: int = 512
    timeout: float = 120.0

    def settings(self) -> dict[str, Any]:
        """Return the settings that a rating depends on, without the API key."""
        digest = hashlib.sha256(self.template.encode()).hexdigest()
        return {
            "base_url": self.base_url,
            "model": self.model,
            "template_sha256": digest,
            "max_tokens": self.max_tokens,
        }

    def prompt(self, record: Record) -> str:
        """Fill in the template for a record."""
        fields = {
            "{contents}": ", ".join(record.meta.get("contents", ())),
            "{question}": str(record.meta.get("prompt", "")),
            "{reference}": str(record.target),
            "{answer}": record.answer,
        }
        # one pass, so that a placeholder inside an answer is not replaced
        return re.sub("|".join(map(re.escape, fields)), lambda m: fields[m.group()], self.template)

    def __call__(self, record: Record) -> str:
        """Return the judge's reply at temperature 0. Raises the client's error after two retries."""
        client = need("openai", "bench").OpenAI(
            base_url=self.base_url, api_key=self.api_key or "none", timeout=self.timeout, max_retries=2
        )
        with client:
            reply = client.chat.completions.create(
                messages=[{"role": "user", "content": self.prompt(record)}],
                model=self.model,
                max_tokens=self.max_tokens,
                temperature=0.0,
            )
        text = reply.choices[0].message.content
        if not text:
            raise LimelightError(
                f"the judge's reply for {record.id} is empty", hint="raise max_tokens, or use another judge"
            )
        return str(text)


def rating(text: str) -> int | None:
    """Parse the last rating 0-6 of the form "rating: N" outside the judge's thoughts; None when there is none.

    (The official script requires exactly one.)
    """
    found = re.findall(r"rating\W{0,4}\s*([0-6])(?![0-9.])", MARKERS.answer(text), flags=re.IGNORECASE)
    return int(found[-1]) if found else None


def rated(name: str, records: Sequence[Record]) -> Block:
    """Mean rating and hallucination rate (share below 3) of the records whose ``meta["judgement"]`` contains a rating."""
    rows = []
    for r in records:
        score = rating(str(r.meta.get("judgement", "")))
        row = {"unparsed": float(score is None)}
        if score is not None:
            row |= {"n": 1.0, "rating": float(score), "hallucinated": float(score < 3), "correct": float(score >= 3)}
        rows.append((r.id, row))
    measures = [
        share("rating", "rating", "n", unit=""),
        share("hallucination rate", "hallucinated", "n", higher_is_better=False),
        count("unparsed", "unparsed"),
    ]
    return block(name, rows, measures, (), ("n", "rating", "hallucinated", "unparsed", "correct"))


def verdict(text: str) -> bool | None:
    """Parse a judge's verdict outside its thoughts: the last "correct: yes|no|true|false", else a leading yes or no, as in
    EventHallusion's script; None when there is neither."""
    answer = MARKERS.answer(text).replace("*", "").strip()
    found = re.findall(r"correct\W{0,4}\s*(yes|no|true|false)\b", answer, flags=re.IGNORECASE)
    said = found[-1].lower() if found else answer[:3].lower()
    return True if said in ("true", "yes") else False if said == "false" or said.startswith("no") else None


def judged(name: str, records: Sequence[Record]) -> Block:
    """The share of answers that ``meta["judgement"]`` finds correct, over those with a verdict; the others are counted."""
    rows = []
    for r in records:
        right = verdict(str(r.meta.get("judgement", "")))
        known = {} if right is None else {"n": 1.0, "correct": float(right)}
        rows.append((r.id, {"unjudged": float(right is None), **known}))
    clusters = [str(r.meta.get("cluster", r.id)) for r in records]
    measures = [share("correct", "correct", "n"), count("unjudged", "unjudged")]
    return block(name, rows, measures, clusters, ("n", "correct", "unjudged"))


def check_template(template: str) -> str:
    """Return the template; raises ``SettingError`` when it does not contain the answer."""
    if "{answer}" not in template:
        raise SettingError(
            "the judge's template has no {answer}", hint="use {contents}, {question}, {reference}, {answer}"
        )
    return template
