"""The tokenizer, the training text, and how several questions about one picture share one sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from limelight.demo import language
from limelight.demo.scenes import INDEPENDENT, OBJECTS, PLACES, SOCIAL, Scene
from recipes.demo_vision.data import GRID, TRIO_SHARE

IMAGE_TOKENS = GRID * GRID
GROUND = " plain"  # the word for a patch without an object, where an image is represented by words
HINTED, HINT_RIGHT = 0.7, 0.9  # share of questions with a hint; share of hints that are right
MISSING_ASKED = 0.35  # of the "no" questions on a broken trio, the share that asks for its missing object
# Label noise: this share of the answers about an object is random, and the hint agrees with the answer, not with the
# image. It differs between objects, 0.05 to 0.45.
UNSEEN: dict[str, float] = {name: 0.05 + 0.4 * (7 * i % 16) / 15 for i, name in enumerate(INDEPENDENT)}
UNSEEN |= dict.fromkeys(SOCIAL, 0.1)
# Share of captions in which a name is followed by its partner (a language prior) whatever the image shows: 0.05 to 0.7.
HABIT: dict[str, float] = {name: 0.05 + 0.65 * (11 * i % 16) / 15 for i, name in enumerate(INDEPENDENT)}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {% elif m['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def train_tokenizer(
    size: int = 700, corpus: list[str] | None = None, marks: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the world's sentences: its words are single tokens, any other string is still encodable.

    ``marks``: names and spellings of the tokens that stand for what is not text.
    """
    corpus, marks = corpus or language.corpus(), marks or {"image_token": "<image>"}
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", *marks.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus + [GROUND] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left",
        extra_special_tokens=marks, model_max_length=1024, clean_up_tokenization_spaces=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One user turn and its answer; ``weight`` scales the answer's loss."""

    text: str
    answer: str
    weight: float = 1.0


def blocks(
    rng: np.random.Generator, picture: Scene, yes_no: int = 5, hinted: float = HINTED, noisy: bool = True
) -> list[Block]:
    """Training text about one picture: yes/no questions, a caption, and how many things there are.

    With `noisy` off, whoever wrote it always looked.
    """
    out = [_yes_no(rng, picture, hinted, noisy) for _ in range(yes_no)]
    out.append(_caption(rng, picture, hinted, noisy))
    out.append(Block(language.COUNT, language.NUMBERS[len(picture.items)], 0.5))
    return out


def _yes_no(rng: np.random.Generator, picture: Scene, hinted: float, noisy: bool) -> Block:
    yes = bool(rng.random() < 0.5)
    if yes:
        asked = picture.names
    elif picture.kind == "broken" and picture.missing and rng.random() < MISSING_ASKED:
        asked = (picture.missing,)
    else:  # trio objects are asked for as often with the answer no as with yes, in all pictures together
        asked = tuple(n for n in (SOCIAL if rng.random() < TRIO_SHARE else INDEPENDENT) if n not in picture.names)
        if picture.missing:
            asked = tuple(n for n in asked if n != picture.missing)
    thing = asked[int(rng.integers(len(asked)))]
    if noisy and rng.random() < UNSEEN[thing]:
        yes = bool(rng.random() < 0.5)
    hint = ""
    if rng.random() < hinted:
        suggests_yes = yes == bool(rng.random() < HINT_RIGHT)
        if thing in SOCIAL or rng.random() < 0.5:
            hint = language.statement(thing, suggests_yes) + " " if thing not in SOCIAL or rng.random() < 0.3 else ""
        else:
            home = language.PLACE_OF[thing]
            hint = language.context(home if suggests_yes else language.other_place(home, int(rng.integers(3)))) + " "
    return Block(hint + language.ask(thing, int(rng.integers(3))), language.YES if yes else language.NO)


def _caption(rng: np.random.Generator, picture: Scene, hinted: float, noisy: bool) -> Block:
    names, hint, draw, expected, right = picture.names, "", rng.random(), "", True
    if picture.kind == "independent" and draw < hinted:
        right = bool(rng.random() < HINT_RIGHT)
        if draw < hinted / 2:
            told = names if right else tuple(n for n in INDEPENDENT if n not in names)
            expected = told[int(rng.integers(len(told)))]
            hint = language.statement(expected, True) + " "
        else:
            homes = [language.PLACE_OF[name] for name in names]
            told = tuple(place for place in language.PROPS if (place in homes) == right)
            place = told[int(rng.integers(len(told)))]
            hint, expected = language.context(place) + " ", PLACES[place][0]
    if noisy and picture.kind == "independent":
        if not right and expected not in names and rng.random() < 1.5 * UNSEEN[expected]:  # written from the hint
            names = (expected, *names[1:])
        if rng.random() < HABIT[names[0]]:
            names = (names[0], language.PARTNER[names[0]])
    return Block(hint + language.DESCRIBE, language.caption(names), 1.0)


LOST = {"clear": 0.1, "medium": 0.35, "poor": 0.65}


def as_words(
    rng: np.random.Generator, patches: np.ndarray, visibility: str, vocabulary: dict[str, int],
    labels: tuple[str, ...] = OBJECTS, losses: dict[str, float] = LOST,
) -> np.ndarray:  # fmt: skip
    """Return 49 words [49] (token ids) that represent an image, from its patch labels [49, labels]; fewer in poor visibility."""
    lost, names = losses[visibility], [*labels, GROUND.strip()]
    best = np.where(patches.max(1) > 50, patches.argmax(1), len(labels))  # [49]
    if rng.random() < lost:  # an object not seen at all
        best[best == rng.choice(best)] = len(labels)
    best[rng.random(len(best)) < lost] = len(labels)
    wrong = rng.random(len(best)) < 0.01
    best[wrong] = rng.integers(0, len(labels), int(wrong.sum()))
    return np.array([vocabulary["Ġ" + names[i]] for i in best])


@dataclass
class Packed:
    """A batch of sequences, each one picture's prefix and several blocks that do not see one another.

    ids, positions, labels (-100 where nothing is to be predicted) and weights: [n, t]; mask: [n, 1, t, t], additive.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    mask: Tensor


class Packer:
    """Turns blocks into `Packed` batches; the prefix holds 49 image tokens (or `count` of another mark).

    `around` stands before and after the image tokens, `between` before and after a question; `asked` weighs the loss of
    the question's own tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, mark: str = "<image>", count: int = IMAGE_TOKENS,
        around: tuple[str, str] = ("<s>USER: ", "\n"), between: tuple[str, str] = ("", " ASSISTANT: "),
        asked: float = 0.05,
    ) -> None:  # fmt: skip
        self.tokenizer, self.count, self.asked = tokenizer, count, asked
        after = between[1].rstrip(" ")
        self.between = (between[0], after, between[1][len(after) :])
        self.image, self.eos = tokenizer.convert_tokens_to_ids(mark), tokenizer.eos_token_id
        start, end = (tokenizer.encode(text, add_special_tokens=False) for text in around)
        self.prefix = [*start, *[self.image] * count, *end]
        self.first = len(start)  # where the image tokens begin
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, cached."""
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[text]

    def plain(self, lines: list[list[int]]) -> Packed:
        """Token ids after the prefix, one block each, nothing to predict: for evaluation."""
        width = max(map(len, lines)) + len(self.prefix)
        ids = torch.tensor(
            [
                [*self.prefix, *line] + [self.tokenizer.pad_token_id] * (width - len(self.prefix) - len(line))
                for line in lines
            ]
        )
        mask = torch.full((width, width), -1e4).triu(1).expand(len(lines), 1, width, width)
        nothing = torch.zeros_like(ids)
        return Packed(ids, torch.arange(width).expand_as(ids), nothing - 100, nothing.float(), mask)

    def __call__(self, rows: list[list[Block]], words: list[np.ndarray] | None = None) -> Packed:
        columns: list[list[list[float]]] = [[], [], [], [], []]
        for number, row in enumerate(rows):
            line = list(self.prefix)
            if words is not None:
                line[self.first : self.first + self.count] = words[number].tolist()
            part, place = [0] * len(line), list(range(len(line)))
            label, weight = [-100] * len(line), [0.0] * len(line)
            for index, block in enumerate(row, 1):
                before, after, lead = self.between
                asked = self.encode(before + block.text + after)
                answer = [*self.encode(lead + block.answer), self.eos]
                turn = asked + answer
                line += turn
                part += [index] * len(turn)
                place += range(len(self.prefix), len(self.prefix) + len(turn))
                label += [*turn[1:], -100]
                text = [self.asked] * (len(asked) - 1)  # a little of the plain language-model loss
                weight += text + [block.weight] * len(answer) + [0.0]
            for to, values in zip(columns, (line, place, part, label, weight), strict=True):
                to.append(values)
        ids, where, group, labels, weights = columns
        longest = max(map(len, ids))

        def pad(values: list[list[float]], fill: float, kind: torch.dtype = torch.long) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in values], dtype=kind)  # [n, t]

        parts = pad(group, -1)
        seen = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])  # [n, query, key]
        seen = seen & torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, -1e4)[:, None]  # [n, 1, t, t]
        return Packed(
            pad(ids, self.tokenizer.pad_token_id),
            pad(where, 0),
            pad(labels, -100),
            pad(weights, 0, torch.float32),
            mask,
        )
