"""``limelight.compare``: one question, several strategies, and what decides between their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from limelight import display
from limelight.decoding.answer import prompt_of
from limelight.decoding.explain import explained, watched
from limelight.decoding.generate import chosen_strategy, generate
from limelight.decoding.strategy import Strategy
from limelight.errors import SettingError
from limelight.models.adapter import wrap
from limelight.relevance.attribute import attribute_generated
from limelight.types import Generation, Prompt, Relevance

COMPARED = ("greedy", "relevance-contrastive")
END = "(end of the answer)"


@dataclass(frozen=True)
class Comparison(display.Documented):
    """Answers of several strategies to one prompt.

    Attributes:
        answers: one per strategy, each token with its relevance.
        decisions: for each answer after the first: the relevance of its word *rather than* the first answer's, at the first
            token where the two differ (:func:`decided`); None where they are equal.
    """

    answers: tuple[Generation, ...]
    decisions: tuple[Relevance | None, ...] = ()

    @property
    def prompt(self) -> Prompt:
        return self.answers[0].prompt

    @property
    def decision(self) -> Relevance | None:
        """The first decision, or None where all answers are equal."""
        return next((d for d in self.decisions if d is not None), None)

    def __str__(self) -> str:
        width = max(len(a.strategy) for a in self.answers)
        lines = [f"{a.strategy:{width}}  {a.text}" for a in self.answers]
        return "\n".join([*lines, *(f"why {d}" for d in self.decisions if d is not None)])


def compare(
    model: Any,
    processor: Any = None,
    messages: Any = "",
    *,
    media: Any = None,
    strategies: Sequence[Strategy | str] = COMPARED,
    meter: bool = True,
    on_answer: Callable[[Generation], None] = lambda _: None,
    **generation_kwargs: Any,
) -> Comparison:
    """Answer one question with several strategies, and attribute every word and every decision between answers.

    Args:
        model, processor, messages, media, generation_kwargs: as for :func:`limelight.generate`.
        strategies: names or Strategies; the others are compared with the first.
        meter: also measure each token's grounding and candidates, with strategies that support the meter.
        on_answer: called with each answer as it is finished.

    Returns:
        A Comparison; a notebook shows the answers and the first decision, ``save("page.html")`` writes the page.

    Raises:
        SettingError: no strategies. For the rest see :func:`limelight.generate`.

    Example:
        >>> import limelight
        >>> adapter = limelight.load("demo-vision")
        >>> found = limelight.compare(adapter, messages="There is no hat. Is there a hat in the picture?",
        ...                           media=limelight.example("hat"), max_new_tokens=4)
        >>> found.decision.explains
        'yes rather than no'
    """
    if not strategies:
        raise SettingError("no strategies to compare", hint=f"for example strategies={COMPARED}")
    if isinstance(processor, (str, list, tuple, Prompt)) and not messages:  # compare(adapter, "What is this?")
        processor, messages = None, processor
    adapter = wrap(model, processor)
    prompt = prompt_of(adapter, messages, media)
    answers = []
    for one in strategies:
        chosen = chosen_strategy(one)
        answer = generate(
            adapter, None, prompt, strategy=watched(chosen) if meter else chosen, relevance=False, **generation_kwargs
        )
        answer = replace(answer, strategy=chosen.name, settings=chosen.settings())
        on_answer(answer)
        answers.append(explained(adapter, answer))
    return compared(adapter, answers)


def compared(model: Any, answers: Sequence[Generation]) -> Comparison:
    """Return the Comparison of finished answers to one prompt."""
    adapter = wrap(model)
    return Comparison(tuple(answers), tuple(decided(adapter, answers[0], other) for other in answers[1:]))


def decided(model: Any, one: Generation, other: Generation) -> Relevance | None:
    """Return why ``other`` says its word rather than that of ``one``, at the first token where the two differ.

    The relevance of the difference between the logits of the two tokens in the unchanged model, after the beginning that both
    share; one forward and one backward pass.

    Returns:
        Relevance over the prompt and the shared beginning, with ``target_token`` and ``against_token`` spelled as the words
        that the tokens begin; None where the answers are equal.
    """
    pairs = zip_longest(one.token_ids, other.token_ids)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if at is None or at >= min(len(one.token_ids), len(other.token_ids)):  # equal, or one of them was cut short
        return None
    (found,) = attribute_generated(
        wrap(model),
        one.prompt.tensors,
        other.token_ids[: at + 1],
        prompt_spans=one.prompt.spans or None,
        last_only=True,
        against=one.token_ids[at],
    )
    return replace(found, target_token=_word_from(other, at), against_token=_word_from(one, at))


def _word_from(generation: Generation, at: int) -> str:
    """Return the text of the word that begins with the token at ``at``, from the next tokens that continue it."""
    if at >= len(generation.said):
        return END
    pieces = [s.text for s in generation.steps]
    text = pieces[at]
    spaced = any(p[:1].isspace() and p.strip() for p in pieces)
    for piece in pieces[at + 1 :] if spaced and text.strip()[:1].isalnum() else ():
        if not piece.strip() or piece[:1].isspace() or not piece[:1].isalnum():
            break
        text += piece
    return text
