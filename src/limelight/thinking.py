"""Separation of reasoning ("thoughts") and answer in the output of reasoning models.

The single definition for everything that reads answers (scorers, judges, the lmms-eval plugin) and for strategies that
start after the reasoning (:mod:`limelight.decoding.after`).
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
    """Pairs of texts that open and close reasoning, matched case-insensitively; tags also with white space or attributes.

    A marker inside quotation marks is a quotation (a sign that reads "<think>") and is ignored.

    An empty opening text means that only the end is marked (chat templates that open the reasoning in the prompt).
    ``wrappers`` are texts that reasoning models write around the answer; they are removed where there was reasoning.

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
                hint="for example ('<think>', '</think>'), or ('', '</think>') where the prompt opens the reasoning",
            )

    @cached_property
    def openings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o for o, _ in self.pairs if o))

    @cached_property
    def closings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c for _, c in self.pairs))

    def plus(self, *pairs: tuple[str, str]) -> Markers:
        """Return markers with further pairs, which come first."""
        return Markers((*pairs, *self.pairs), self.wrappers)

    def kept(self, text: str, *, opened: bool = False) -> list[tuple[int, int]] | None:
        """Return the half-open ranges of the answer in a text, or None where the text has no marker.

        Args:
            opened: the prompt opened the reasoning, so a text without a closing marker is all reasoning.
        """
        found = [m for m in self._pattern.finditer(text) if not _quoted(text, m)] if self.pairs else []
        if not found and not opened:
            return None
        ranges: list[tuple[int, int]] = []
        start: int | None = None if opened else 0  # start of the current answer range; None inside reasoning
        ends: frozenset[str] = frozenset(
            c.casefold() for c in self.closings
        )  # closing markers of the current reasoning
        for match in found:
            marker, at = _TAG.sub(r"<\1\2>", match.group()).casefold(), match.start()
            closes = self._openings_of.get(marker)
            if start is None:
                if marker in ends:
                    start = match.end()
            elif closes is not None:
                ranges.append((start, at))
                start, ends = None, closes
            else:  # a closing marker without an opening one: the prompt opened the reasoning
                ranges, start = [], match.end()
        if start is not None:
            ranges.append((start, len(text)))
        return [(a, b) for a, b in ranges if a < b]

    def answer(self, text: str, *, opened: bool = False) -> str:
        """Return a text without reasoning: unchanged where it has none, else stripped of white space and wrappers.

        After an opening marker that is never closed everything is reasoning, so the answer may be empty.
        """
        ranges = self.kept(text, opened=opened)
        if ranges is None:
            return text
        pieces = [text[a:b].strip() for a, b in ranges]
        joined = " ".join(p for p in pieces if p)
        return self._wrapper.sub("", joined).strip() if self.wrappers else joined

    def opened_by(self, prompt: str) -> bool:
        """Whether the prompt ends with open reasoning."""
        tail = prompt.rstrip().casefold()
        return any(tail.endswith(o.strip().casefold()) for o in self.openings)

    def used_by(self, tokenizer: Any) -> bool:
        """Whether a model is a reasoning model: its tokenizer has a marker token, or its chat template writes one."""
        template = getattr(tokenizer, "chat_template", None)
        texts = template.values() if isinstance(template, dict) else [template or ""]
        added = set(map(str, getattr(tokenizer, "get_added_vocab", dict)()))
        marks = {m.strip() for m in (*self.openings, *self.closings)}
        return bool(added & marks) or any(m in str(t) for t in texts for m in marks)

    @cached_property
    def _openings_of(self) -> dict[str, frozenset[str]]:
        """Map each opening marker to its closing markers."""
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
    """Return the pattern of a marker; for a tag also with white space or attributes."""
    tag = _TAG.fullmatch(marker)
    if tag is None:
        return re.escape(marker)
    return rf"<\s*{tag[1]}\s*{re.escape(tag[2])}(?:\s[^<>]*)?>"


def _quoted(text: str, match: re.Match[str]) -> bool:
    """Whether a marker is directly enclosed in quotation marks."""
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
THINKING = "thinking"  # value of ``after=`` that means any closing marker


def markers_of(given: Iterable[Sequence[str]] | Markers | None) -> Markers:
    """Return the markers of a setting: None for the default ones, pairs to add to them, ``()`` for none.

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
            hint="for example [('<plan>', '</plan>')]; an empty list scores answers unchanged",
        )
    return MARKERS.plus(*((str(a), str(b)) for a, b in pairs)) if pairs else NONE


@dataclass(frozen=True)
class Spoken:
    """Generated text, and which of its tokens belong to the answer.

    ``text`` includes the markers, which decoding without special tokens may drop. ``opened``: the prompt opened reasoning.
    """

    text: str
    answered: tuple[bool, ...]
    opened: bool


def spoken(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = (), markers: Markers = MARKERS) -> Spoken:
    """Decode generated token ids with reasoning markers, and determine which tokens belong to the answer."""
    marks = {m.casefold() for m in (*markers.openings, *markers.closings)}
    special = set(getattr(tokenizer, "all_special_ids", ()))

    def decoded(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=False))

    text = decoded(ids)
    opened = bool(len(prompt)) and markers.opened_by(decoded([int(i) for i in prompt][-32:]))
    ranges = markers.kept(text, opened=opened)
    if ranges is None:
        return Spoken(str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip(), (True,) * len(ids), opened)
    ends = [len(decoded(ids[: j + 1])) for j in range(len(ids))]
    answered = tuple(
        any(a < stop and start < b for a, b in ranges) for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    )
    # keep special tokens that are part of a marker (harmony's markers consist of several)
    near = {i for i in special if any(decoded([i]).casefold() in m for m in marks) and decoded([i]).strip()}
    text = decoded([i for i in ids if i not in special or i in near]).strip()
    return Spoken(text, answered, opened)
