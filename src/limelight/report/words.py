"""Grouping of tokens into words and sentences, and aggregation of relevance and grounding over them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import torch

from limelight.errors import SettingError
from limelight.types import EARLIER_ANSWERS, MODALITIES, Generation, Relevance, Step, mean_parts

_PUNCTUATION = frozenset('.,;:!?…()[]{}"“”„«»')
_ENDS = frozenset(".!?…。！？")
_CLOSING = frozenset(')]}"”»')
_FIRST_IDEOGRAPH = "\u2e80"  # from here on, scripts without spaces between words


@dataclass(frozen=True)
class Word:
    """A run ``[start, stop)`` of generated tokens that forms one word; ``space``: whether a space precedes it."""

    text: str
    start: int
    stop: int
    space: bool = True

    @property
    def punctuation(self) -> bool:
        return all(c in _PUNCTUATION for c in self.text)


def words(generation: Generation) -> tuple[Word, ...]:
    """Return the answer's words in order; punctuation marks are separate words, special tokens are skipped.

    Tokens are aligned with ``generation.text``, since a token's text alone does not show whether a space precedes it.
    """
    return words_of(generation.text, generation.steps)


def words_of(text: str, steps: Sequence[Step]) -> tuple[Word, ...]:
    """Like :func:`words`, of an answer's text and its steps."""
    at = 0
    found: list[Word] = []
    waiting: int | None = None  # first of the preceding unmatched tokens: bytes of a character, or special tokens
    for i, step in enumerate(steps):
        core = step.text.strip()
        if not core:
            continue
        begin = _skip_space(text, at)
        matched_at = begin if text.startswith(core, begin) else -1
        if matched_at < 0 and waiting is not None:
            matched_at = text.find(core, begin, begin + 8 * (i - waiting) + len(core))
        if matched_at < 0:
            waiting = i if waiting is None else waiting
            continue
        if waiting is not None and matched_at > begin:
            stop = len(text[:matched_at].rstrip())
            _add(found, text, at, stop, waiting, i)
            at = stop
        _add(found, text, at, matched_at + len(core), i, i + 1)
        at, waiting = matched_at + len(core), None
    if waiting is not None and text[at:].strip():
        parts = [i for i, s in enumerate(steps) if i >= waiting and "\ufffd" in s.text]
        _add(found, text, at, len(text), waiting, parts[-1] + 1 if parts else len(steps))
    return tuple(found)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _add(found: list[Word], text: str, before: int, stop: int, first: int, last: int) -> None:
    """Append ``text[before:stop]`` (including leading space) to the last word, or start a new one."""
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
    """Return a word's relevance: the sum over its tokens, that is, the relevance of the sum of their logits.

    Relevance is linear in the explained logit, so the sum is exact. None when no token of the word has relevance.
    """
    parts = [s.relevance for s in generation.steps[word.start : word.stop] if s.relevance is not None]
    if not parts:
        return None
    longest = max(parts, key=lambda r: len(r.tokens))
    scores = longest.scores.new_zeros(longest.scores.shape)
    for part in parts:
        scores[: part.scores.shape[0]] += part.scores.to(scores.device)
    carried = longest.media_inputs if all(p.media_inputs for p in parts) else {}
    return replace(
        longest,
        scores=scores,
        media_inputs={name: torch.stack([p.media_inputs[name] for p in parts]).sum(0) for name in carried},
        media_times=longest.media_times if carried else {},
        target=parts[0].target,
        target_token=word.text,
        logit=sum(p.logit for p in parts),
        position=parts[0].position,
    )


def grouped(tokens: Sequence[str], positions: Sequence[int]) -> list[list[int]]:
    """Join the positions of sub-word pieces into words.

    A piece continues a word where the tokenizer writes spaces into its tokens (some token begins with one) and this one begins
    with a letter or digit and no space; tokenizers that write no spaces give one word per token.
    """
    spaced = sum(1 for i in positions if tokens[i][:1].isspace() and tokens[i].strip()) > 1
    found: list[list[int]] = []
    for i in positions:
        token = tokens[i]
        continues = spaced and found and found[-1][-1] == i - 1 and token[:1].isalnum() and token.isalnum()
        if continues and tokens[i - 1][-1:].isalnum():
            found[-1].append(i)
        else:
            found.append([i])
    return found


def text_words(relevance: Relevance, template: Collection[int] = ()) -> list[tuple[str, float]]:
    """Return the words of prompt and answer with their relevance, the largest ``|R|`` first.

    Sub-word pieces are joined and their scores added (exact, relevance is linear). Positions of the chat template
    (the relevance's own and ``template``), special tokens such as ``<s>``, white space, and words without any relevance
    (those of an answer that come later) are left out.
    """
    hidden = {*template, *relevance.template, *relevance.sinks}
    positions = [
        i
        for s in relevance.spans_of("text")
        for i in range(s.start, s.stop)
        if i not in hidden and _visible(relevance.tokens[i])
    ]
    values = relevance.scores.tolist()
    rows = [
        ("".join(relevance.tokens[i] for i in group).strip(), float(sum(values[i] for i in group)))
        for group in grouped(relevance.tokens, positions)
        if any(values[i] for i in group)
    ]
    return sorted(rows, key=lambda row: -abs(row[1]))


def line(relevance: Relevance, template: Collection[int] = (), count: int = 4) -> str:
    """Describe a relevance in one line: "yes rather than no: image +2.1, text -0.9 (logits); words: hat -1.2, ..."."""
    totals = ", ".join(f"{m} {relevance.total(m):+.2g}" for m in MODALITIES if relevance.spans_of(m))
    tops = ", ".join(f"{text} {value:+.2g}" for text, value in text_words(relevance, template)[:count])
    return (
        f"{relevance.explains}: {totals} (logits); words: {tops}"
        if tops
        else f"{relevance.explains}: {totals} (logits)"
    )


def _visible(token: str) -> bool:
    text = token.strip()
    return bool(text) and not (len(text) > 2 and text[0] == "<" and text[-1] == ">" and " " not in text)


def rather_than(one: Relevance, other: Relevance) -> Relevance:
    """Return the relevance of the difference between the logits of two tokens (exact, by linearity).

    Evidence that supports both equally cancels out; the evidence that decides between them remains.

    Raises:
        SettingError: the two explain different positions.
    """
    if one.scores.shape != other.scores.shape or one.position != other.position:
        raise SettingError(
            f"relevances of positions {one.position} and {other.position} cannot be subtracted",
            hint="attribute both tokens at the same position of the same prompt",
        )
    carried = one.media_inputs if other.media_inputs else {}
    return replace(
        one,
        scores=one.scores - other.scores,
        media_inputs={name: values - other.media_inputs[name] for name, values in carried.items()},
        media_times=one.media_times if carried else {},
        logit=one.logit - other.logit,
        against=other.target,
        against_token=other.target_token,
    )


def word_shares(generation: Generation, word: Word) -> dict[str, float]:
    """Return the modality shares of a word's relevance (backward pass); {} where none was computed.

    From the summed relevance of its tokens where available, else the mean of ``Step.shares``.
    """
    relevance = word_relevance(generation, word)
    if relevance is not None:
        return relevance.shares()
    return mean_parts([s.shares for s in generation.steps[word.start : word.stop]])


def word_contributions(generation: Generation, word: Word) -> dict[str, float]:
    """Return the modality contributions to a word's logits (meter), averaged over its tokens; {} where no meter ran."""
    return mean_parts([s.contributions for s in generation.steps[word.start : word.stop]])


def word_grounding(generation: Generation, word: Word) -> float | None:
    """Return a word's grounding: that of its first measured token; None where no meter ran.

    The first token decides the word; the remaining tokens follow from the language and depend little on the media, so a
    mean or minimum over the tokens would reflect spelling more than the word.
    """
    step = _deciding(generation.steps, word)
    return None if step is None else step.grounding


def word_support(generation: Generation, word: Word) -> dict[str, float]:
    """Return the known values of the media's support for a word: ``grounding``, ``rival_grounding``, ``p_supported``, and
    ``grounding image`` etc. per modality where there are several; {} where no meter ran."""
    step = _deciding(generation.steps, word)
    if step is None:
        return {}
    several = step.grounding_by_modality if len(step.grounding_by_modality) > 1 else {}
    values = {"grounding": step.grounding, "rival_grounding": step.rival_grounding, "p_supported": step.p_supported}
    values |= {f"grounding {kind}": z for kind, z in several.items()}
    return {k: v for k, v in values.items() if v is not None}


def word_flagged(generation: Generation, word: Word) -> bool:
    """Whether the token that determines the word's grounding is flagged; any of its tokens where none has a grounding.

    Punctuation is never flagged.
    """
    return _flagged(generation.steps, word)


def flagged_words(text: str, steps: Sequence[Step]) -> list[tuple[str, bool]]:
    """Return an answer's words in order, and whether each is flagged (:func:`word_flagged`)."""
    return [(word.text, _flagged(steps, word)) for word in words_of(text, steps)]


def _flagged(steps: Sequence[Step], word: Word) -> bool:
    if word.punctuation:
        return False
    step = _deciding(steps, word)
    return any(s.flagged for s in ([step] if step is not None else steps[word.start : word.stop]))


def _deciding(steps: Sequence[Step], word: Word) -> Step | None:
    """Return the first token of a word that the meter has measured."""
    return next((s for s in steps[word.start : word.stop] if s.grounding is not None), None)


@dataclass(frozen=True)
class Sentence:
    """A run ``[start, stop)`` of generated tokens that forms one sentence, and its words, including punctuation.

    Attributes:
        grounding: mean grounding of its words without punctuation; None where no meter ran. Suited to transcripts, where
            every word is spoken; in descriptions function words mask the invented one.
        margin: the minimum of ``min(0, grounding - rival_grounding)`` over its words: how much better the media support
            another plausible word; 0 where they support every chosen word. Suited to descriptions.
        flagged: whether any of its words is flagged.
    """

    text: str
    start: int
    stop: int
    words: tuple[Word, ...]
    grounding: float | None = None
    margin: float | None = None
    flagged: bool = False


def sentences(generation: Generation) -> tuple[Sentence, ...]:
    """Return the answer's sentences in order, each ending with ``.``, ``!``, ``?``, ``…`` or an ideographic equivalent."""
    groups: list[list[Word]] = [[]]
    for word in words(generation):
        if _ended(groups[-1]) and (word.space or word.text[0] >= _FIRST_IDEOGRAPH):  # "3.5" does not end a sentence
            groups.append([])
        groups[-1].append(word)
    return tuple(_sentence(generation, tuple(group)) for group in groups if group)


def _ended(group: Sequence[Word]) -> bool:
    last = next((w.text[-1] for w in reversed(group) if w.text[-1] not in _CLOSING), "")
    return last in _ENDS


def _sentence(generation: Generation, group: tuple[Word, ...]) -> Sentence:
    text = "".join((" " if w.space and i else "") + w.text for i, w in enumerate(group))
    spoken = [w for w in group if not w.punctuation]
    deciding = [s for w in spoken if (s := _deciding(generation.steps, w)) is not None]
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
    """Return the part of all media (neither text nor earlier answers); None when unknown."""
    return 1.0 - parts.get("text", 0.0) - parts.get(EARLIER_ANSWERS, 0.0) if parts else None


SHARES, CONTRIBUTIONS = "share of the relevance", "part of the logit, by the meter"


def known_parts(generation: Generation) -> str:
    """Return the quantity for shading words: SHARES where relevance was computed, else CONTRIBUTIONS, else ""."""
    if generation.shares():
        return SHARES
    return CONTRIBUTIONS if generation.contributions() else ""


def word_parts(generation: Generation, word: Word) -> dict[str, float]:
    """Return a word's values of the quantity that :func:`known_parts` gives for the whole answer."""
    which = known_parts(generation)
    return word_contributions(generation, word) if which == CONTRIBUTIONS else word_shares(generation, word)


def choose(generation: Generation, which: str | int | None = None) -> Word:
    """Select a word by number (1 is the first, -1 the last) or by text; by default the one with the largest media share.

    Raises:
        SettingError: the answer has no such word, or no words.
    """
    found = words(generation)
    if not found:
        raise SettingError("the answer has no words", hint="raise --max-new-tokens, or change the prompt")
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
    """Align two answers: pairs of matching words (index in one -> index in two), and the words that differ."""
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
