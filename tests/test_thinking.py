"""Which part of what a reasoning model said is the answer."""

from __future__ import annotations

import random

import pytest

from limelight.errors import SettingError
from limelight.thinking import MARKERS, NONE, Markers, markers_of, spoken
from limelight.types import Record

CASES = [
    ("No, there is no hat.", "No, there is no hat."),
    (" Yes\n", " Yes\n"),  # no thoughts: not a blank is touched
    ("", ""),
    ("<think>no hat visible.</think> No", "No"),
    ("<think>\n\n</think>\n\nNo", "No"),
    ("<thinking>a dog?</thinking>Yes.", "Yes."),
    ("<Think>a dog?</THINK>Yes.", "Yes."),
    ("[THINK]a cat[/THINK]A dog.", "A dog."),
    ("◁think▷a cat◁/think▷A dog.", "A dog."),
    ("<|channel>thought\na cat<channel|>A dog.", "A dog."),
    ("<|channel|>analysis<|message|>a cat<|end|><|start|>assistant<|channel|>final<|message|>A dog.<|return|>", "A dog."),
    ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary<|message|>y<|end|>"
     "<|start|>assistant<|channel|>final<|message|>A dog.", "A dog."),
    ("<|channel|>final<|message|>A dog.", "A dog."),
    ("analysisA cat?assistantfinalA dog.", "A dog."),
    ("<|START_THINKING|>cat<|END_THINKING|><|START_RESPONSE|>A dog.<|END_RESPONSE|>", "A dog."),
    ("a cat</think>A dog.", "A dog."),  # the prompt opened the thoughts
    ("<think>a cat", ""),  # cut off while thinking
    ("A dog. <think>or a cat", "A dog."),
    ("<think>a</think>A dog <think>b</think>barks.", "A dog barks."),
    ("<think>say <thinking> or not</think>A dog.", "A dog."),  # another marker inside thoughts is a thought
    ("<think>a <think>b</think> c</think>A dog.", "A dog."),
    ("<think>a</think>x</think>A dog.", "A dog."),
    ("<think>a</thinking> b", ""),  # only its own end closes it
    ("<think>a</think><answer>No</answer>", "No"),
    ("<think>a</think>It is <|begin_of_box|>No<|end_of_box|>", "It is No"),
    ("<answer>No</answer>", "<answer>No</answer>"),  # without thoughts an answer is what it is
    ("1 < 2 </b> <i>think</i>", "1 < 2 </b> <i>think</i>"),
    ("<think >a cat</ think >A dog.", "A dog."),
    ('<thinking mode="deep">a cat</thinking>A dog.', "A dog."),
    ("<thinker>a cat</thinker> <think", "<thinker>a cat</thinker> <think"),
    ('The sign says "<think>" in red.', 'The sign says "<think>" in red.'),  # what is read is no thought
    ("The sign says `</think>`.", "The sign says `</think>`."),
    ('<think>It says "</think>" there.</think>A dog.', "A dog."),
    ('"<think>a cat</think>A dog."', '" A dog."'),
    ('He said "hi"<think>"a cat"</think>"A dog."', 'He said "hi" "A dog."'),  # quotation marks of their neighbours
    ('<think>"</think>"A dog."', '"A dog."'),
]  # fmt: skip


@pytest.mark.parametrize(("said", "answer"), CASES)
def test_the_answer_without_its_thoughts(said: str, answer: str) -> None:
    assert MARKERS.answer(said) == answer
    assert MARKERS.answer(answer) == answer  # once is enough
    assert Record("1", said).answer == answer
    assert NONE.answer(said) == said
    assert Record("1", said, markers=NONE).answer == said


def test_a_prompt_that_opened_the_thoughts() -> None:
    assert MARKERS.answer("a cat", opened=True) == ""
    assert MARKERS.answer("a cat</think>A dog.", opened=True) == "A dog."
    assert MARKERS.answer("<think>a cat</think>A dog.", opened=True) == "A dog."
    assert MARKERS.opened_by("<|assistant|>\n<think>\n")
    assert not MARKERS.opened_by("<|assistant|>\n<think>\n\n</think>\n\n")


def test_no_word_of_a_thought_is_left() -> None:
    """Random texts of thoughts and answers, each word once."""
    rng = random.Random(0)
    for _ in range(300):
        pairs = [p for p in MARKERS.pairs if p[0]]
        text, kept = "", []
        for k in range(rng.randint(1, 6)):
            if rng.random() < 0.5:
                a, b = rng.choice(pairs)
                text += f"{a} thought{k} {b}"
            else:
                text += f" word{k} "
                kept.append(f"word{k}")
        if any(c in text for c in MARKERS.closings):
            answer = MARKERS.answer(text)
            assert "thought" not in answer.replace("<|channel>thought", ""), text
            assert answer.split() == kept, text


def test_own_markers() -> None:
    plans = markers_of([("<plan>", "</plan>")])
    assert plans.answer("<plan>cat</plan>dog") == "dog"
    assert plans.answer("<think>cat</think>dog") == "dog"  # beside the usual ones
    assert markers_of(None) is MARKERS
    assert markers_of(plans) is plans
    assert markers_of(()) is NONE
    for wrong in ([("<plan>",)], ["<plan>"], [("<plan>", "")], [("<plan>", 3)]):
        with pytest.raises(SettingError, match="pair"):
            markers_of(wrong)  # type: ignore[arg-type]


class Tokenizer:
    """A word a token; some are special."""

    def __init__(self, *special: str) -> None:
        self.words: list[str] = []
        self.special = set(special)

    @property
    def all_special_ids(self) -> list[int]:
        return [i for i, w in enumerate(self.words) if w in self.special]

    def encode(self, *words: str) -> list[int]:
        for w in words:
            if w not in self.words:
                self.words.append(w)
        return [self.words.index(w) for w in words]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(self.words[i] for i in ids if not (skip_special_tokens and self.words[i] in self.special))

    def get_added_vocab(self) -> dict[str, int]:
        return {w: i for i, w in enumerate(self.words) if w in self.special}


def test_markers_that_are_special_tokens_are_not_lost() -> None:
    tokenizer = Tokenizer("[THINK]", "[/THINK]", "</s>")
    ids = tokenizer.encode("[THINK]", " a", " cat", "[/THINK]", "A", " dog", "</s>")
    found = spoken(tokenizer, ids)
    assert found.text == "[THINK] a cat[/THINK]A dog"
    assert MARKERS.answer(found.text) == "A dog"
    assert found.answered == (False, False, False, False, True, True, True)
    assert MARKERS.used_by(tokenizer)
    assert not MARKERS.used_by(Tokenizer("</s>"))
    plain = tokenizer.encode("A", " dog", "</s>")
    assert spoken(tokenizer, plain).text == "A dog"
    assert spoken(tokenizer, plain).answered == (True, True, True)


def test_thoughts_that_never_end_behind_a_prompt_that_opened_them() -> None:
    tokenizer = Tokenizer("</s>")
    prompt = tokenizer.encode("Is there a dog?", "<think>", "\n")
    found = spoken(tokenizer, tokenizer.encode("a", " cat"), prompt)
    assert found.opened
    assert found.answered == (False, False)
    assert MARKERS.answer(found.text, opened=found.opened) == ""
    ended = spoken(tokenizer, tokenizer.encode("a", " cat", "</think>", "No"), prompt)
    assert ended.answered == (False, False, False, True)


def test_templates_that_write_a_marker() -> None:
    tokenizer = Tokenizer()
    tokenizer.chat_template = "{{ '<think>' }}"  # type: ignore[attr-defined]
    assert MARKERS.used_by(tokenizer)
    tokenizer.chat_template = {"default": "{{ messages }}"}  # type: ignore[attr-defined]
    assert not MARKERS.used_by(tokenizer)


def test_markers_need_an_end() -> None:
    with pytest.raises(SettingError, match="closing"):
        Markers((("<think>", " "),))
