"""What is asked about a scene, and what is answered: captions, and as many questions with yes as with no."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from recipes.demo_vision.text import Block

DESCRIBE = ("Describe the picture.", "What can you see in the picture?")
YES, NO = "Yes.", "No."
KINDS = ("random", "popular", "adversarial")  # of questions whose answer is no
QUESTIONS = 4  # per scene, in training
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AROUND = ("<|im_start|>user\n", "\n")
BETWEEN = ("", "<|im_end|>\n<|im_start|>assistant\n")


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def caption(nouns: Sequence[str]) -> str:
    """``The picture shows a dog, a ball and an apple.``"""
    named = [article(n) for n in nouns]
    return (
        f"The picture shows {', '.join(named[:-1])} and {named[-1]}." if named[1:] else f"The picture shows {named[0]}."
    )


def question(noun: str) -> str:
    return f"Is there {article(noun)} in the picture?"


class Company:
    """How often nouns are in scenes, and how often together, as counted in training; ``nouns``: those that may be asked for."""

    def __init__(self, scenes: Iterable[Sequence[str]], nouns: Iterable[str] = ()) -> None:
        self.nouns = set(nouns)
        self.single: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        for nouns in scenes:
            self.single.update(nouns)
            for a, b in combinations(nouns, 2):
                self.pairs[a, b] += 1
                self.pairs[b, a] += 1
        self.nouns |= set(self.single)

    def absent(self, kind: str, present: Sequence[str], rng: random.Random, among: int = 6) -> str:
        """A noun that is not in the scene: any; one of the most frequent; one that often goes with those that are there.

        As POPE's (arXiv 2305.10355), except that one of the first ``among`` is drawn rather than the first taken.
        """
        left = [n for n in sorted(self.nouns) if n not in present]
        if kind == "popular":
            left = sorted(left, key=lambda n: -self.single[n])[:among]
        elif kind == "adversarial":
            left = sorted(left, key=lambda n: -sum(self.pairs[n, p] / max(1, self.single[n]) for p in present))[:among]
        return rng.choice(left)


def blocks(nouns: Sequence[str], company: Company, rng: random.Random) -> list[Block]:
    """A caption, and questions: half of them with the answer yes."""
    out = [Block(rng.choice(DESCRIBE), caption(nouns))]
    for number in range(QUESTIONS):
        if number % 2:
            out.append(Block(question(rng.choice(list(nouns))), YES, 2.0))
        else:
            out.append(Block(question(company.absent(rng.choice(KINDS), nouns, rng)), NO, 2.0))
    return out


def says(answer: str, nouns: Iterable[str]) -> list[str]:
    """The nouns that an answer names, in order, each once; plurals count."""
    known: Mapping[str, str] = {form: n for n in nouns for form in (n, f"{n}s", f"{n}es")}
    words = "".join(c if c.isalpha() else " " for c in answer.lower()).split()
    return list(dict.fromkeys(known[w] for w in words if w in known))
