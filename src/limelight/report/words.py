"""From tokens to the words a person reads, and from the tokens' relevance to a word's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from limelight.errors import SettingError
from limelight.types import EARLIER_ANSWERS, Generation, Relevance, Step, mean_parts

_PUNCTUATION = frozenset('.,;:!?…()[]{}"“”„«»')
_ENDS = frozenset(".!?…。！？")
_CLOSING = frozenset(')]}"”»')
_FIRST_IDEOGRAPH = "\u2e80"  # from here on, scripts that put no space between words


@dataclass(frozen=True)
class Word:
    """A run ``[start, stop)`` of generated tokens that reads as one word; ``space``: a space stands before it."""

    text: str
    start: int
    stop: int
    space: bool = True

    @property
    def punctuation(self) -> bool:
        return all(c in _PUNCTUATION for c in self.text)


def words(generation: Generation) -> tuple[Word, ...]:
    """The answer's words in order; punctuation marks are words of their own, special tokens are none.

    Tokens are laid along ``generation.text``, since a token's spelling alone does not tell whether a space precedes it.
    """
    text, at = generation.text, 0
    found: list[Word] = []
    waiting: int | None = (
        None  # first of the tokens just before that could not be found: bytes of a character, or special
    )
    for i, step in enumerate(generation.steps):
        core = step.text.strip()
        if not core:
            continue
        begin = _skip_space(text, at)
        reach = begin if text.startswith(core, begin) else -1
        if reach < 0 and waiting is not None:
            reach = text.find(core, begin, begin + 8 * (i - waiting) + len(core))
        if reach < 0:
            waiting = i if waiting is None else waiting
            continue
        if waiting is not None and reach > begin:
            stop = len(text[:reach].rstrip())
            _add(found, text, at, stop, waiting, i)
            at = stop
        _add(found, text, at, reach + len(core), i, i + 1)
        at, waiting = reach + len(core), None
    if waiting is not None and text[at:].strip():
        parts = [i for i, s in enumerate(generation.steps) if i >= waiting and "\ufffd" in s.text]
        _add(found, text, at, len(text), waiting, parts[-1] + 1 if parts else len(generation.steps))
    return tuple(found)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _add(found: list[Word], text: str, before: int, stop: int, first: int, last: int) -> None:
    """Put ``text[before:stop]`` (leading space included) behind the last word, or begin a new one."""
    begin = _skip_space(text, before)
    piece, space = text[begin:stop], begin > before
    previous = found[-1] if found else None
    if previous is not None and not space and _joined(previous.text, piece):
        found[-1] = replace(previous, text=previous.text + piece, stop=last)
    else:
        found.append(Word(piece, first, last, space))


def _joined(left: str, right: str) -> bool:
    if left[-1] >= _FIRST_IDEOGRAPH or right[0] >= _FIRST_IDEOGRAPH:
        return False
    return not (all(c in _PUNCTUATION for c in left) or all(c in _PUNCTUATION for c in right))


def word_relevance(generation: Generation, word: Word) -> Relevance | None:
    """Relevance of a word: the sum over its tokens, that is, the relevance of the sum of their logits.

    Relevance is linear in what is explained, so the sum is exact. None when no token of the word has any.
    """
    parts = [s.relevance for s in generation.steps[word.start : word.stop] if s.relevance is not None]
    if not parts:
        return None
    longest = max(parts, key=lambda r: len(r.tokens))
    scores = longest.scores.new_zeros(longest.scores.shape)
    for part in parts:
        scores[: part.scores.shape[0]] += part.scores.to(scores.device)
    return replace(
        longest,
        scores=scores,
        target=parts[0].target,
        target_token=word.text,
        logit=sum(p.logit for p in parts),
        position=parts[0].position,
    )


def rather_than(one: Relevance, other: Relevance) -> Relevance:
    """Where one token rather than another comes from: relevance of the difference of their logits (exact, by linearity).

    What supports both alike cancels out, so that what decides between them is left.

    Raises:
        SettingError: the two explain different positions.
    """
    if one.scores.shape != other.scores.shape or one.position != other.position:
        raise SettingError(
            f"relevances of positions {one.position} and {other.position} cannot be subtracted",
            hint="attribute both tokens at the same position of the same prompt",
        )
    return replace(one, scores=one.scores - other.scores, logit=one.logit - other.logit)


def word_shares(generation: Generation, word: Word) -> dict[str, float]:
    """Modality shares of a word's relevance (by backward); {} where none was computed.

    Of its tokens' relevance together where that is at hand, else the mean of ``Step.shares``.
    """
    relevance = word_relevance(generation, word)
    if relevance is not None:
        return relevance.shares()
    return mean_parts([s.shares for s in generation.steps[word.start : word.stop]])


def word_contributions(generation: Generation, word: Word) -> dict[str, float]:
    """Modality contributions to a word's logits (by the meter), the mean over its tokens; {} where no meter ran."""
    return mean_parts([s.contributions for s in generation.steps[word.start : word.stop]])


def word_grounding(generation: Generation, word: Word) -> float | None:
    """A word's grounding: that of its first token that has one; None where no meter ran.

    The first token decides which word it becomes; the rest of its spelling follows from the language, and the media are
    asked little about it, so that a mean or a minimum over the tokens would say more about spelling than about the word.
    """
    step = _deciding(generation, word)
    return None if step is None else step.grounding


def word_support(generation: Generation, word: Word) -> dict[str, float]:
    """What is known of the media's support for a word, as far as it is: ``grounding``, ``rival_grounding``, ``p_supported``,
    and ``grounding image`` ... of each modality where there are several; {} where no meter ran."""
    step = _deciding(generation, word)
    if step is None:
        return {}
    several = step.grounding_by_modality if len(step.grounding_by_modality) > 1 else {}
    told = {"grounding": step.grounding, "rival_grounding": step.rival_grounding, "p_supported": step.p_supported}
    told |= {f"grounding {kind}": z for kind, z in several.items()}
    return {k: v for k, v in told.items() if v is not None}


def word_flagged(generation: Generation, word: Word) -> bool:
    """Whether the token is flagged that gives the word its grounding; any of its tokens where none has a grounding."""
    step = _deciding(generation, word)
    return any(s.flagged for s in ([step] if step is not None else generation.steps[word.start : word.stop]))


def _deciding(generation: Generation, word: Word) -> Step | None:
    """The first token of a word that the meter has measured."""
    return next((s for s in generation.steps[word.start : word.stop] if s.grounding is not None), None)


@dataclass(frozen=True)
class Sentence:
    """A run ``[start, stop)`` of generated tokens that reads as one sentence, and its words, punctuation included.

    Attributes:
        grounding: mean of its words' grounding, punctuation left out; None where no meter ran. For transcripts, where every
            word is heard; a description's words of grammar drown the one that is invented.
        margin: the least of ``min(0, grounding - rival_grounding)`` over its words: how much better the media support
            another word that the model found possible; 0 where they support what was said everywhere. For descriptions.
        flagged: whether a word of it is.
    """

    text: str
    start: int
    stop: int
    words: tuple[Word, ...]
    grounding: float | None = None
    margin: float | None = None
    flagged: bool = False


def sentences(generation: Generation) -> tuple[Sentence, ...]:
    """The answer's sentences in order, each ending with ``.``, ``!``, ``?``, ``…`` or its ideographic form."""
    groups: list[list[Word]] = [[]]
    for word in words(generation):
        if _ended(groups[-1]) and (word.space or word.text[0] >= _FIRST_IDEOGRAPH):  # "3.5" is no end
            groups.append([])
        groups[-1].append(word)
    return tuple(_sentence(generation, tuple(group)) for group in groups if group)


def _ended(group: Sequence[Word]) -> bool:
    last = next((w.text[-1] for w in reversed(group) if w.text[-1] not in _CLOSING), "")
    return last in _ENDS


def _sentence(generation: Generation, group: tuple[Word, ...]) -> Sentence:
    text = "".join((" " if w.space and i else "") + w.text for i, w in enumerate(group))
    spoken = [w for w in group if not w.punctuation]
    deciding = [s for w in spoken if (s := _deciding(generation, w)) is not None]
    scores = [s.grounding for s in deciding if s.grounding is not None]
    behind = [
        min(0.0, s.grounding - s.rival_grounding)
        for s in deciding
        if s.grounding is not None and s.rival_grounding is not None
    ]
    return Sentence(
        text,
        group[0].start,
        group[-1].stop,
        group,
        grounding=sum(scores) / len(scores) if scores else None,
        margin=min(behind, default=0.0) if scores else None,
        flagged=any(s.flagged for s in deciding),
    )


def perceptual(parts: dict[str, float]) -> float | None:
    """Part of everything that the media have; None when nothing is known."""
    return 1.0 - parts.get("text", 0.0) - parts.get(EARLIER_ANSWERS, 0.0) if parts else None


SHARES, CONTRIBUTIONS = "share of the relevance", "part of the logit, by the meter"


def known_parts(generation: Generation) -> str:
    """What its words can be shaded by: SHARES where a relevance was computed, else CONTRIBUTIONS, else ""."""
    if generation.shares():
        return SHARES
    return CONTRIBUTIONS if generation.contributions() else ""


def word_parts(generation: Generation, word: Word) -> dict[str, float]:
    """What a word is shaded by: the one quantity that :func:`known_parts` names for the whole answer."""
    which = known_parts(generation)
    return word_contributions(generation, word) if which == CONTRIBUTIONS else word_shares(generation, word)


def choose(generation: Generation, which: str | int | None = None) -> Word:
    """A word by number (1 is the first, -1 the last) or by spelling; by default the most perceptual one.

    Raises:
        SettingError: the answer has no such word, or no words.
    """
    found = words(generation)
    if not found:
        raise SettingError("the answer has no words", hint="raise --max-new-tokens, or ask something else")
    listed = " ".join(f"{i}:{w.text}" for i, w in enumerate(found[:40], start=1))
    if which is None:
        plain = [w for w in found if not w.punctuation] or list(found)
        return max(plain, key=lambda w: perceptual(word_parts(generation, w)) or 0.0)
    number = int(which) if str(which).lstrip("-").isdigit() else None
    if number is not None:
        if not (1 <= number <= len(found) or -len(found) <= number <= -1):
            raise SettingError(
                f"there is no word number {number}, the answer has {len(found)}", hint=f"words: {listed}"
            )
        return found[number - 1 if number > 0 else number]
    wanted = str(which).strip().casefold()
    for word in found:
        if word.text.casefold() == wanted:
            return word
    raise SettingError(f"the answer has no word {which!r}", hint=f"words: {listed}")


def aligned(one: Sequence[str], two: Sequence[str]) -> tuple[dict[int, int], set[int], set[int]]:
    """Two answers laid side by side: pairs of counterparts (index in one -> index in two), and which words differ."""
    pairs: dict[int, int] = {}
    left, right = set[int](), set[int]()
    matcher = SequenceMatcher(a=[w.casefold() for w in one], b=[w.casefold() for w in two], autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag in ("equal", "replace"):
            pairs.update(zip(range(a, b), range(c, d), strict=False))
        if tag != "equal":
            left.update(range(a, b))
            right.update(range(c, d))
    return pairs, left, right
