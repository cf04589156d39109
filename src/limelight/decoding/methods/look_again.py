"""Look again: before it decides, the model gets another view of the place where the decision's relevance lies.

Source: this library. Kin: visual cropping by attention or gradient (Zhang et al., "MLLMs Know Where to Look", ICLR 2025,
arXiv 2502.17422), by similarity of cached values (FOCUS, arXiv 2506.21710), tree search (ZoomEye, arXiv 2411.16044), and
gates by confidence (LookWise / AdaFocus, arXiv 2603.00171).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limelight.decoding.contrastive import check_choice, check_range
from limelight.decoding.generation_options import refuse
from limelight.decoding.looking.decision import DECISIONS
from limelight.decoding.looking.gates import GATES, finite_threshold
from limelight.decoding.looking.joins import JOINS
from limelight.decoding.looking.localisers import localisers
from limelight.decoding.looking.regions import Windows
from limelight.decoding.looking.search import ORDERS, OVERLAP, SEARCHES
from limelight.decoding.looking.session import LookAgainSession
from limelight.decoding.strategy import Capabilities, GenerationContext, Method
from limelight.errors import SettingError

GIVEN = "given"


@dataclass(frozen=True)
class LookAgain(Method):
    """Look, listen or watch again where it matters, in the original's full detail, and join the answers.

    At the first token that the gate ``when`` opens for, the localiser ``where`` scores the media's positions, the windows
    with the highest scores are cut out of the original media, and the same question is asked about each. Pictures and films
    that the model already sees in full detail are not looked at again, and cost nothing. A sound longer than the model's window
    is heard window by window, then again where it matters. Of a film the frames around those that matter are watched, with the
    frames between them where its file can be read again, whole or cut to a part of each frame. From that token on the answer
    comes from the joined views.

    Args:
        views: the most views, the whole medium included. Windows of a long sound are taken whatever the budget.
        where: the localiser (:mod:`limelight.decoding.looking.localisers`): ``blend`` (positive relevance of the decision
            and its gradient's norm), ``attnlrp`` (signed relevance of the decision), ``attnlrp-absolute``, ``attnlrp-positive``, ``cp-lrp``, ``gradient``, ``entropy-gradient``, ``phi``
            (no backward pass), ``attention``, ``attention-head``, ``relative-attention``, ``attention-gradient``,
            ``pixel-gradient``, ``value-similarity``, ``random``; or ``given``: the places in ``boxes``.
        when: ``auto``, ``uncertain``, ``ungrounded`` or ``always`` (:class:`limelight.decoding.looking.gates.Gate`).
        threshold: of the gate; None: .9 for ``auto`` and ``uncertain``, the flag's threshold for ``ungrounded``.
        join: ``evidence``, ``any`` (of questions whether something is there), ``mean``, ``crops`` or ``second-picture``
            (:mod:`limelight.decoding.looking.joins`); ``auto``: second-picture where the family takes several pictures,
            else evidence.
        search: ``windows``, ``quarters`` or ``auto`` (:mod:`limelight.decoding.looking.search`).
        decision: ``auto``, ``top`` or ``yes-no`` (:func:`limelight.decoding.looking.decision.decide`).
        phrase: localise these words instead of the decision.
        order: of the quarters, ``evidence`` or ``confidence``.
        sizes, shapes, seconds, context, tightness, pick: of windows (:class:`limelight.decoding.looking.regions.Windows`).
        least_gain: pictures whose original is not finer than what the model sees by this factor per side are left alone, and
            films whose file has not so many times as many frames either.
        sure, telling, overlap: of the search.
        target: the words whose values ``value-similarity`` looks for. generic: the question that ``relative-attention``
            and ``pixel-gradient`` divide by. channels: blocks of ``phi``. seed: of ``random``.
        boxes: with ``given``: (left, top, right, bottom) in fractions of the prompt's first picture (of a sound: its seconds
            on the horizontal axis; of a film two further numbers may say when the box begins and ends, in fractions of its
            length), or one such list per row of the batch; one view each. Smaller parts than what the model sees in full
            detail grow to that.

    Processors, sampling and stopping act on the joined logits.
    """

    name = "look-again"

    views: int = 2
    where: str = "blend"
    when: str = "auto"
    threshold: float | None = None
    join: str = "auto"
    search: str = "windows"
    decision: str = "auto"
    phrase: str | None = None
    sizes: tuple[float, ...] = Windows.sizes
    shapes: tuple[float, ...] = Windows.shapes
    seconds: tuple[float, ...] = Windows.seconds
    context: float = Windows.context
    tightness: float = Windows.tightness
    pick: str = Windows.pick
    order: str = "evidence"
    least_gain: float = 1.25
    sure: float = 0.9
    telling: float = 0.5
    overlap: float = OVERLAP
    target: str | None = None
    generic: str | None = None
    channels: int = 16
    seed: int = 0
    boxes: Any = field(default=())

    def __post_init__(self) -> None:
        if isinstance(self.views, bool) or not isinstance(self.views, int) or self.views < 2:
            raise SettingError(
                f"look-again: expected at least 2 views, got {self.views!r}", hint="2: the whole picture and one crop"
            )
        check_choice("look-again", "where", self.where, (*localisers(), GIVEN))
        check_choice("look-again", "when", self.when, GATES)
        check_choice("look-again", "join", self.join, JOINS)
        check_choice("look-again", "search", self.search, SEARCHES)
        check_choice("look-again", "pick", self.pick, ("mass", "sharpest"))
        check_choice("look-again", "order", self.order, ORDERS)
        check_choice("look-again", "decision", self.decision, DECISIONS)
        if not finite_threshold(self.threshold):
            raise SettingError(
                f"look-again: expected a finite threshold, got {self.threshold!r}", hint="0.9 for when='uncertain'"
            )
        if self.when == "always" and self.threshold is not None:
            raise SettingError("look-again: when='always' has no threshold", hint="leave threshold out")
        for name in ("sizes", "shapes", "seconds"):
            values = getattr(self, name)
            values = tuple(values) if isinstance(values, (list, tuple)) else (values,)
            for value in values or (None,):
                check_range("look-again", name, value, 0.01, hint="one or more positive numbers, such as (1.0, 1.5)")
            object.__setattr__(self, name, values)
        check_range("look-again", "context", self.context, 0.0, 4.0, hint="0.1 adds a tenth of the side on every side")
        check_range("look-again", "tightness", self.tightness, 0.0, 2.0, hint="0.5 is the default")
        check_range("look-again", "least_gain", self.least_gain, 0.0, hint="0 looks at every picture again")
        check_range("look-again", "sure", self.sure, 0.0, 1.0, hint="0.9 is the default")
        check_range("look-again", "telling", self.telling, 0.0, hint="0.5 is the default")
        check_range("look-again", "overlap", self.overlap, 0.0, 0.9, hint=f"{OVERLAP} is the default")
        check_range("look-again", "channels", self.channels, 1, hint="16 is the default")
        object.__setattr__(self, "boxes", _boxes(self.boxes))
        if bool(self.boxes) != (self.where == GIVEN):
            raise SettingError(
                "look-again: boxes and where='given' belong together", hint="where='given', boxes=((0, 0, 0.5, 0.5),)"
            )
        rows = self.boxes if self.boxes and isinstance(self.boxes[0][0], tuple) else (self.boxes,)
        if (most := max(map(len, rows))) >= self.views:
            raise SettingError(
                f"look-again: {most} boxes are {most + 1} views with that of the whole medium, got views={self.views}",
                hint=f"views={most + 1}",
            )
        owners = {"target": ("value-similarity",), "generic": ("relative-attention", "pixel-gradient")}
        for name, users in owners.items():
            if getattr(self, name) is not None and self.where not in users:
                hint = " or ".join(f"where={u!r}" for u in users)
                raise SettingError(f"look-again: {name} would have no effect", hint=f"{hint} uses it")

    @property
    def capabilities(self) -> Capabilities:
        known = localisers().get(self.where)
        return Capabilities(
            batches=not self.boxes,
            gradients=known is not None and known.gradients,
            second_prompt=True,
            originals=True,
            long_audio=True,
        )

    @property
    def windows(self) -> Windows:
        return Windows(self.sizes, self.shapes, self.seconds, self.context, self.tightness, self.pick)

    @property
    def options(self) -> Mapping[str, Any]:
        """The localiser's settings."""
        return {"target": self.target, "generic": self.generic, "channels": self.channels, "seed": self.seed}

    def session(self, context: GenerationContext) -> LookAgainSession:
        """Raises SettingError where the original media are not at hand, UnsupportedError for an encoder-decoder."""
        refuse(context, "look-again", "prefill_chunk_size")
        return LookAgainSession(self, context)


def _boxes(given: Any) -> Any:
    """Check boxes, or lists of them per row, and make them tuples."""
    if isinstance(given, (list, tuple)) and all(isinstance(b, (list, tuple)) for b in given):
        nested = [b for b in given if b and all(isinstance(x, (list, tuple)) for x in b)]
        if len(nested) == len(given):
            return tuple(_boxes(b) for b in given)
        if not nested and all(_is_box(b) for b in given):
            return tuple(tuple(float(x) for x in b) for b in given)
    raise SettingError(
        f"look-again: expected boxes (left, top, right, bottom) in fractions of the picture, got {given!r}",
        hint="boxes=((0.0, 0.0, 0.5, 0.5),); of a film also (left, top, right, bottom, begin, end)",
    )


def _is_box(box: Any) -> bool:
    numbers = len(box) in (4, 6) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in box)
    pairs = ((0, 2), (1, 3), (4, 5))[: len(box) // 2]
    return numbers and all(0 <= box[a] < box[b] <= 1 for a, b in pairs)


def look_again(views: int = 2, **settings: Any) -> LookAgain:
    """Another view of the place where the decision's relevance lies; see :class:`LookAgain` for the settings."""
    return LookAgain(views, **settings)


STRATEGIES = {"look-again": LookAgain}
