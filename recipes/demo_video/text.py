"""The training text about a film: questions on what, when and which order, captions, with the noise that makes the prior."""

from __future__ import annotations

import numpy as np

from limelight.demo import film_language as language
from limelight.demo.film_questions import TOPICS, hinted, wording
from limelight.demo.films import NAMES, Film
from limelight.demo.language import NO, PARTNER, PLACE_OF, PROPS, YES, statement
from limelight.demo.questions import HintKind
from recipes.demo_video.data import TOKENS, pooled
from recipes.demo_vision.text import HINT_RIGHT, HINTED, Block, Packer, train_tokenizer
from recipes.demo_vision.text import as_words as written

# As in the other miniatures, whoever wrote the text did not always watch: this share of the answers about an object is a
# coin's, and the hint is right about the answer, not about the film. It differs between objects, 0.05 to 0.45.
UNSEEN: dict[str, float] = {name: 0.05 + 0.4 * (7 * i % 16) / 15 for i, name in enumerate(NAMES)}
# Share of captions that let the first object be followed by its partner (a habit of words) whatever the film shows.
HABIT: dict[str, float] = {name: 0.05 + 0.45 * (11 * i % 16) / 15 for i, name in enumerate(NAMES)}
TOPIC_SHARE = (0.2, 0.35, 0.45)  # of the questions: what, when, order
LOST: dict[str, float] = {"clear": 0.05, "medium": 0.2, "poor": 0.5}  # of the words a film is written with
MARKS = {"image_token": "<image>", "video_token": "<video>"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {% elif m['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def new_packer() -> Packer:
    """The tokenizer of the world of films, and 73 video tokens before every question."""
    return Packer(train_tokenizer(corpus=language.corpus(), marks=MARKS), MARKS["video_token"], TOKENS)


def blocks(
    rng: np.random.Generator, one: Film, yes_no: int = 6, hint_share: float = HINTED, noisy: bool = True
) -> list[Block]:
    """Training text about one film: yes/no questions and a caption. With `noisy` off, whoever wrote it always watched."""
    out = [_yes_no(rng, one, hint_share, noisy) for _ in range(yes_no)]
    return [*out, _caption(rng, one, hint_share, noisy)]


def _yes_no(rng: np.random.Generator, one: Film, hint_share: float, noisy: bool) -> Block:
    topic = TOPICS[int(rng.choice(len(TOPICS), p=TOPIC_SHARE))]
    yes = bool(rng.random() < 0.5)
    question, objects, word = wording(topic, one, rng, yes, int(rng.integers(3)))
    if noisy and rng.random() < UNSEEN[objects[0]]:
        yes = bool(rng.random() < 0.5)
    hint = ""
    if rng.random() < hint_share:
        suggests_yes = yes == bool(rng.random() < HINT_RIGHT)
        kind: HintKind = "E" if topic != "what" or rng.random() < 0.5 else "C"
        hint = hinted(topic, objects, word, suggests_yes, kind, int(rng.integers(3)))
    return Block(hint + question, YES if yes else NO)


def _caption(rng: np.random.Generator, one: Film, hint_share: float, noisy: bool) -> Block:
    names, hint, draw, expected, right = one.names, "", rng.random(), "", True
    if draw < hint_share:
        right = bool(rng.random() < HINT_RIGHT)
        if draw < hint_share / 2:
            told = names if right else tuple(n for n in NAMES if n not in names)
            expected = told[int(rng.integers(len(told)))]
            hint = statement(expected, True) + " "
        else:
            homes = [PLACE_OF[name] for name in names]
            told = tuple(place for place in PROPS if (place in homes) == right)
            place = told[int(rng.integers(len(told)))]
            hint = language.context(place) + " "
            expected = next(n for n in NAMES if PLACE_OF[n] == place)
    said = {name: name for name in names}  # what the writer calls each object
    if noisy:
        if not right and expected not in names and rng.random() < 1.5 * UNSEEN[expected]:  # written from the hint
            said[names[0]] = expected
        partner = PARTNER[said[names[0]]]
        if rng.random() < HABIT[said[names[0]]] and partner not in names:
            said[names[1]] = partner
    events = tuple((said[name], what) for name, what in one.events)
    return Block(hint + language.DESCRIBE, language.caption(events), 0.6)


def as_words(
    rng: np.random.Generator,
    patches: np.ndarray,
    one: Film,
    vocabulary: dict[str, int],
    losses: dict[str, float] = LOST,
) -> np.ndarray:
    """A film written as 73 words [73] (token ids) from its patch labels [8, 36, objects]; the last stays the mark."""
    words = written(rng, pooled(patches), one.visibility, vocabulary, NAMES, losses)
    return np.append(words, vocabulary[MARKS["video_token"]])
