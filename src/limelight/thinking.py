"""Thoughts and answers: which part of what a reasoning model said is the answer.

One definition for everything that reads answers (scorers, judges, the lmms-eval plugin) and for strategies that wait for
the end of the thoughts (:mod:`limelight.decoding.after`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limelight.errors import SettingError


@dataclass(frozen=True)
class Markers:
    """Pairs of texts that open and close thoughts, matched in any case; tags also with blanks or attributes in them.

    A marker in quotation marks of its own is what somebody read (a sign that says "<think>"), and marks nothing.

    An empty opening text means that only the end is marked (chat templates that open the thoughts in the prompt).
    ``wrappers`` are texts around the answer, which reasoning models write behind their thoughts; they are removed
    where thoughts were.

    Raises:
        SettingError: a pair without a closing text.
    """

    pairs: tuple[tuple[str, str], ...]
    wrappers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [pair for pair in self.pairs if len(pair) != 2 or not pair[1].strip()]
        if wrong:
            raise SettingError(
                f"expected pairs of an opening and a closing marker, got {wrong[0]!r}",
                hint="such as ('<think>', '</think>'), or ('', '</think>') where the prompt opens the thoughts",
            )

    @cached_property
    def openings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o for o, _ in self.pairs if o))

    @cached_property
    def closings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c for _, c in self.pairs))

    def plus(self, *pairs: tuple[str, str]) -> Markers:
        """These and further ones, the further ones first."""
        return Markers((*pairs, *self.pairs), self.wrappers)

    def kept(self, text: str, *, opened: bool = False) -> list[tuple[int, int]] | None:
        """Half-open ranges of the text that are answer, None where the text holds no marker.

        Args:
            opened: the prompt has opened the thoughts, so that a text without any closing marker is all thought.
        """
        found = [m for m in self._pattern.finditer(text) if not _quoted(text, m)] if self.pairs else []
        if not found and not opened:
            return None
        ranges: list[tuple[int, int]] = []
        start: int | None = None if opened else 0  # of the answer we are in; None inside thoughts
        ends: frozenset[str] = frozenset(c.casefold() for c in self.closings)  # what ends the thoughts we are in
        for match in found:
            marker, at = _TAG.sub(r"<\1\2>", match.group()).casefold(), match.start()
            closes = self._openings_of.get(marker)
            if start is None:
                if marker in ends:
                    start = match.end()
            elif closes is not None:
                ranges.append((start, at))
                start, ends = None, closes
            else:  # an end without a beginning: the prompt opened the thoughts
                ranges, start = [], match.end()
        if start is not None:
            ranges.append((start, len(text)))
        return [(a, b) for a, b in ranges if a < b]

    def answer(self, text: str, *, opened: bool = False) -> str:
        """The text without thoughts; as it is where it has none, else stripped of blanks and wrappers.

        An opening marker that is never closed makes everything behind it thought, so that the answer may be empty.
        """
        ranges = self.kept(text, opened=opened)
        if ranges is None:
            return text
        pieces = [text[a:b].strip() for a, b in ranges]
        whole = " ".join(p for p in pieces if p)
        return self._wrapper.sub("", whole).strip() if self.wrappers else whole

    def opened_by(self, prompt: str) -> bool:
        """Whether the prompt's last words open thoughts."""
        tail = prompt.rstrip().casefold()
        return any(tail.endswith(o.strip().casefold()) for o in self.openings)

    def used_by(self, tokenizer: Any) -> bool:
        """Whether a model thinks: its tokenizer knows one of the markers, or its chat template writes one."""
        template = getattr(tokenizer, "chat_template", None)
        texts = template.values() if isinstance(template, dict) else [template or ""]
        added = set(map(str, getattr(tokenizer, "get_added_vocab", dict)()))
        marks = {m.strip() for m in (*self.openings, *self.closings)}
        return bool(added & marks) or any(m in str(t) for t in texts for m in marks)

    @cached_property
    def _openings_of(self) -> dict[str, frozenset[str]]:
        """Opening marker -> the closing ones that end it."""
        return {
            o.casefold(): frozenset(c.casefold() for other, c in self.pairs if other.casefold() == o.casefold())
            for o in self.openings
        }

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        every = sorted({*self.openings, *self.closings}, key=len, reverse=True)
        return re.compile("|".join(map(_loosely, every)), re.IGNORECASE)

    @cached_property
    def _wrapper(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.wrappers)), re.IGNORECASE)


_TAG = re.compile(r"<\s*(/?)\s*([\w:]+)(?:\s[^<>]*)?>")
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}


def _loosely(marker: str) -> str:
    """A pattern of a marker; of a tag also with blanks or attributes."""
    tag = _TAG.fullmatch(marker)
    if tag is None:
        return re.escape(marker)
    return rf"<\s*{tag[1]}\s*{re.escape(tag[2])}(?:\s[^<>]*)?>"


def _quoted(text: str, match: re.Match[str]) -> bool:
    """Whether a marker stands alone between quotation marks that open before it and close behind it."""
    before, behind = text[max(0, match.start() - 2) : match.start()], text[match.end() : match.end() + 2]
    if not before or not behind or _QUOTES.get(before[-1]) != behind[0]:
        return False
    return (len(before) < 2 or before[0].isspace() or before[0] in "([{") and not behind[1:].isalnum()


_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "analysis", "seed:think", "scratchpad")
_FINAL = "<|channel|>final<|message|>"
MARKERS = Markers(
    (
        *((f"<{tag}>", f"</{tag}>") for tag in _TAGS),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought", "<channel|>"),
        ("<|channel|>analysis", _FINAL),
        ("<|channel|>commentary", _FINAL),
        ("", "assistantfinal"),  # the same, decoded without special tokens
    ),
    (
        "<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>", "<|begin_of_solution|>", "<|end_of_solution|>",
        "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|return|>", "<|end|>",
    ),
)  # fmt: skip
"""Qwen, DeepSeek, GLM, InternVL and most others; Magistral; Kimi-VL; Sky-T1; Command A; Gemma 4; gpt-oss (harmony)."""
NONE = Markers(())
THINKING = "thinking"  # as a marker of ``after=``: any of the closing ones


def markers_of(given: Iterable[Sequence[str]] | Markers | None) -> Markers:
    """The markers meant by a setting: None for the usual ones, pairs for own ones beside them, ``()`` for none.

    Raises:
        SettingError: not pairs of texts.
    """
    if given is None:
        return MARKERS
    if isinstance(given, Markers):
        return given
    pairs = [tuple(p) if isinstance(p, (list, tuple)) else (p,) for p in given]
    wrong = [p for p in pairs if len(p) != 2 or not all(isinstance(x, str) for x in p)]
    if wrong:
        raise SettingError(
            f"expected pairs of an opening and a closing marker, got {wrong[0]!r}",
            hint="such as [('<plan>', '</plan>')]; an empty list scores answers as they are",
        )
    return MARKERS.plus(*((str(a), str(b)) for a, b in pairs)) if pairs else NONE


@dataclass(frozen=True)
class Spoken:
    """What was said, and which of its tokens are answer.

    ``text`` keeps the markers, which decoding without special tokens may lose. ``opened``: the prompt opened thoughts.
    """

    text: str
    answered: tuple[bool, ...]
    opened: bool


def spoken(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = (), markers: Markers = MARKERS) -> Spoken:
    """Generated token ids as text with its thoughts marked, and token by token whether it belongs to the answer."""
    marks = {m.casefold() for m in (*markers.openings, *markers.closings)}
    special = set(getattr(tokenizer, "all_special_ids", ()))

    def decoded(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False))

    whole = decoded(ids)
    opened = bool(len(prompt)) and markers.opened_by(decoded([int(i) for i in prompt][-32:]))
    ranges = markers.kept(whole, opened=opened)
    if ranges is None:
        return Spoken(str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip(), (True,) * len(ids), opened)
    ends = [len(decoded(ids[: j + 1])) for j in range(len(ids))]
    answered = tuple(
        any(a < stop and start < b for a, b in ranges) for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    )
    # special tokens that take part in a marker stay (harmony writes its markers in several)
    near = {i for i in special if any(decoded([i]).casefold() in m for m in marks) and decoded([i]).strip()}
    text = decoded([i for i in ids if i not in special or i in near]).strip()
    return Spoken(text, answered, opened)
