"""The values that flow through the library. Frozen, and free of any model.

messages -> Prompt -> Relevance -> Step -> Generation          Sample -> Record -> numbers
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from limelight import display
from limelight.errors import SettingError
from limelight.regions import Box as Box
from limelight.regions import Clip as Clip
from limelight.regions import Interval as Interval
from limelight.regions import Region as Region
from limelight.thinking import MARKERS, Markers

if TYPE_CHECKING:
    from torch import Tensor

Modality = Literal["text", "image", "video", "audio"]
# The order of transformers' mm_token_type_ids: index 0 text, 1 image, 2 video, 3 audio.
MODALITIES: tuple[Modality, ...] = get_args(Modality)
EARLIER_ANSWERS = "earlier answers"  # a group of contributions beside the modalities


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open run ``[start, stop)`` of positions of one modality.

    ``grid`` is the layout of the positions where it is known: ``(rows, columns)`` of a picture, ``(frames, rows,
    columns)`` of a video. ``margin`` is how many of its last columns hold no media (newline embeddings, row breaks).
    ``seconds`` is the length of sound that one position stands for. ``region`` and ``interval`` say which part of the
    original picture, film or sound the positions show (None: not known).

    Raises:
        SettingError: no positions, or a grid that does not have as many cells as there are positions.
    """

    start: int
    stop: int
    modality: Modality
    grid: tuple[int, ...] | None = None
    seconds: float | None = None
    margin: int = 0
    region: Region | None = None
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise SettingError(
                f"a span needs 0 <= start < stop, got [{self.start}, {self.stop}) of {self.modality}",
                hint="leave out what has no positions, or check the placeholders of the prompt",
            )
        if self.modality not in MODALITIES:
            raise SettingError(f"unknown modality {self.modality!r}", hint=f"one of {', '.join(MODALITIES)}")
        if self.grid is not None and (math.prod(self.grid) != len(self) or not 0 <= self.margin < self.grid[-1]):
            raise SettingError(
                f"a grid {self.grid} with margin {self.margin} does not lay out {len(self)} positions",
                hint="the grid's product is the span's length, and its margin is less than its columns",
            )

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns without the margin; one row where the layout is not known."""
        return (1, len(self)) if self.grid is None else (self.grid[-2], self.grid[-1] - self.margin)


class Inputs(dict[str, Any]):
    """Keyword arguments of ``model.forward`` that know the spans of their one row, with what the processor showed of
    the originals; ``Adapter.spans`` reads them. A copy as a plain dict works too, without that knowledge."""

    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What the processor made of the messages: one row, ready for the model.

    ``tensors`` are keyword arguments of ``model.forward``; ``tokens`` the words as the tokenizer spells them, one a
    position; ``spans`` partition ``[0, len(tokens))``.
    """

    tensors: Mapping[str, Any]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    media: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Relevance:
    """How much each position contributed to one logit: ``R_i = sum_d x_id * df/dx_id`` under the composite's rules.

    Attributes:
        scores: float32 ``[T]``, signed, in units of the logit.
        tokens: ``T`` words.
        spans: a partition of ``[0, T)``.
        target: the token id whose logit was explained; ``target_token`` its spelling; ``logit`` its value.
        position: the position that predicted it (``T - 1`` when decoding).
        sinks: positions to leave out of shares and plots (attention sinks).
    """

    scores: Tensor
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    target: int
    target_token: str = ""
    logit: float = float("nan")
    position: int = -1
    sinks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        edges = [0, *(s.stop for s in self.spans)]
        whole = self.scores.ndim == 1 and edges[-1] == self.scores.shape[0] == len(self.tokens)
        if not whole or any(s.start != edge for s, edge in zip(self.spans, edges, strict=False)):
            raise SettingError(
                f"relevance needs scores [T], T tokens and spans that partition [0, T), got scores "
                f"{tuple(self.scores.shape)}, {len(self.tokens)} tokens and {[(s.start, s.stop) for s in self.spans]}",
                hint="build a Relevance with attribute(), which keeps the two in step",
            )

    def total(self, modality: Modality | None = None) -> float:
        """Signed sum over a modality (all positions when None), sinks left out: Phi_M, in units of the logit."""
        return float(self._masked()[self._positions(modality)].sum())

    def share(self, modality: Modality) -> float:
        """``sum |R_i|`` over the modality divided by ``sum |R_i|`` over all positions; in [0, 1]; 0 when all are 0."""
        scores = self._masked().abs()
        whole = float(scores.sum())
        return float(scores[self._positions(modality)].sum()) / whole if whole else 0.0

    def shares(self) -> dict[str, float]:
        """``share`` of every modality that has a span; sums to 1."""
        return {m: self.share(m) for m in MODALITIES if any(s.modality == m for s in self.spans)}

    def spans_of(self, modality: Modality) -> tuple[Span, ...]:
        return tuple(s for s in self.spans if s.modality == modality)

    def on_grid(self, index: int = 0, modality: Modality = "image") -> Tensor:
        """Scores of the ``index``-th span of a picture ``[rows, columns]`` or video ``[frames, rows, columns]``.

        Without the span's margin.
        """
        span = self._span(modality, index)
        scores = self.scores[span.start : span.stop]
        if span.grid is None:
            raise SettingError(
                f"the layout of {modality} span {index} ({len(span)} positions) is not known",
                hint="use .scores[span.start:span.stop], or pass grid= when building the spans",
            )
        return scores.reshape(span.grid)[..., : span.grid[-1] - span.margin]

    def on_picture(self, index: int = 0) -> tuple[tuple[Tensor, Region], ...]:
        """Every grid on the ``index``-th picture of the prompt: scores ``[rows, columns]`` and the part it shows.

        One for most models; those that cut a picture into tiles have one a tile, and often one of the whole.

        Raises:
            SettingError: no such picture, or it is not known which part of it each position shows.
        """
        found = [
            (self.scores[s.start : s.stop].reshape(s.grid)[:, : s.cells[1]], s.region)
            for s in self.spans_of("image")
            if s.region is not None and not s.region.frames and s.region.source == index
            if s.grid is not None and len(s.grid) == 2
        ]
        if not found:
            raise SettingError(
                f"it is not known which positions show which part of picture {index}",
                hint="attribute the tensors of Adapter.prepare, which reads it off the processor; a resampler's "
                "positions have no place",
            )
        return tuple(found)

    def on_sound(self, index: int = 0) -> tuple[Tensor, Tensor]:
        """Scores ``[n]`` on the ``index``-th sound and their times ``[n, 2]`` (start, stop) in its seconds.

        Positions that hold nothing but padding are left out.

        Raises:
            SettingError: no such sound, or the times of its positions are not known.
        """
        import torch

        scores, times = [], []
        for s in self.spans_of("audio"):
            if s.interval is None or s.seconds is None or s.interval.source != index:
                continue
            edges = s.interval.start + torch.arange(len(s) + 1, dtype=torch.float64) * s.seconds
            real = edges[:-1] < s.interval.duration - 1e-6
            scores.append(self.scores[s.start : s.stop][real])
            times.append(torch.stack([edges[:-1], edges[1:].clamp_max(s.interval.duration)], -1)[real])
        if not scores:
            raise SettingError(
                f"it is not known which positions stand for which seconds of sound {index}",
                hint="attribute the tensors of Adapter.prepare, which knows the sounds",
            )
        return torch.cat(scores), torch.cat(times)

    def on_seconds(self, index: int = 0) -> tuple[Tensor, float]:
        """Scores of the ``index``-th audio span ``[n]`` and how many seconds each stands for."""
        span = self._span("audio", index)
        if span.seconds is None:
            raise SettingError(
                f"the frame rate of audio span {index} ({len(span)} positions) is not known",
                hint="pass the duration of the sound so that seconds a token can be computed",
            )
        return self.scores[span.start : span.stop], span.seconds

    def top(self, n: int = 5, modality: Modality | None = None) -> list[tuple[int, str, float]]:
        """The ``n`` positions with the largest ``|R_i|``: (position, token, score)."""
        import torch

        where = torch.tensor(self._positions(modality), dtype=torch.long)
        order = self._masked()[where].abs().argsort(descending=True)[:n]
        return [(int(i), self.tokens[int(i)], float(self.scores[int(i)])) for i in where[order]]

    def without_sinks(self, positions: Iterable[int] = (0,)) -> Relevance:
        """The same relevance with some positions (attention sinks) left out of shares and plots."""
        from dataclasses import replace

        return replace(self, sinks=tuple(sorted(set(positions))))

    def _repr_html_(self) -> str | None:
        return display.html(self)

    def _masked(self) -> Tensor:
        if not self.sinks:
            return self.scores
        scores = self.scores.clone()
        scores[list(self.sinks)] = 0.0
        return scores

    def _span(self, modality: Modality, index: int) -> Span:
        spans = self.spans_of(modality)
        if not 0 <= index < len(spans):
            raise SettingError(
                f"no {modality} span number {index}: this prompt has {len(spans)}",
                hint=f"its spans are {[(s.modality, s.start, s.stop) for s in self.spans]}",
            )
        return spans[index]

    def _positions(self, modality: Modality | None) -> list[int]:
        return [i for s in self.spans if modality in (None, s.modality) for i in range(s.start, s.stop)]


@dataclass(frozen=True)
class Step:
    """One generated token.

    Attributes:
        token, text: id and spelling.
        logprob: natural log of its probability in the distribution it was chosen from (after processors).
        relevance: where it came from, by a backward pass: under exact LIME's own, optimised forward there, else of the
            unchanged model. None where it was not asked for.
        shares: modality -> ``sum |R_i|`` over its positions by that over all; ``relevance.shares()``, so in [0, 1] and
            summing to 1. {} where there is no relevance.
        intervened: whether the strategy changed the distribution at this token.
        plain: the token the unchanged model would have chosen greedily, when the strategy knows it.
        losses: name -> values, one an optimisation step.
        candidates: (token id, spelling, logit, Phi_M) of the top candidates, when a meter ran.
        grounding: how far the media speak for the token, against the whole vocabulary: the z-score of its Phi_M
            (:mod:`limelight.grounding.score`), of all media together, by the meter in forward mode. None where no meter ran
            or the prompt has no media.
        rival_grounding: the highest score of another token that the model finds possible (a probability of .001 or more);
            None where there is none.
        grounding_by_modality: modality -> the same for that modality's positions alone; {} where ``grounding`` is None.
        p_supported: the probability that the token is supported by the media, by the model's calibration; None without one.
        flagged: ``grounding`` lies below the flag's threshold while ``rival_grounding`` does not
            (:func:`limelight.grounding.score.flagged`).
        contributions: modality -> its part of the token's logit ``l``, by the meter in forward mode:
            ``|Phi_m| / (sum_m |Phi_m| + |l - sum_m Phi_m|)`` with Phi_m summed over the modality's positions, signs and all;
            text is the rest; earlier answers, where they were measured, are a group beside the modalities. In [0, 1],
            summing to 1. {} where no meter ran. Not comparable with ``shares``, in which positions of one modality that
            pull in opposite directions do not cancel.
        top_logprobs: (spelling, natural log of its probability) of the likeliest tokens in the distribution it was chosen
            from, best first; () where none were asked for.
    """

    token: int
    text: str
    logprob: float = float("nan")
    relevance: Relevance | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    intervened: bool = False
    plain: int | None = None
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    candidates: tuple[tuple[int, str, float, float], ...] = ()
    flagged: bool = False
    contributions: Mapping[str, float] = field(default_factory=dict)
    grounding: float | None = None
    rival_grounding: float | None = None
    grounding_by_modality: Mapping[str, float] = field(default_factory=dict)
    p_supported: float | None = None
    top_logprobs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """What ``generate`` returns: the answer and how it came about.

    ``flag`` is the rule of ``Step.flagged``: its ``threshold``, ``needs_rival``, and whether they are a ``default`` that was not
    calibrated for this model (:mod:`limelight.calibration`); {} where no meter ran.
    """

    text: str
    token_ids: tuple[int, ...]
    steps: tuple[Step, ...]
    prompt: Prompt
    strategy: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    flag: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str | None:
        return display.html(self)

    def shares(self) -> dict[str, float]:
        """Mean of ``Step.shares`` (of the relevance, by backward) over the tokens that have them; {} without any."""
        return mean_parts([s.shares for s in self.steps])

    def contributions(self) -> dict[str, float]:
        """Mean of ``Step.contributions`` (to the logit, by the meter) over the tokens that have them; {} without any."""
        return mean_parts([s.contributions for s in self.steps])


def mean_parts(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of group -> part over the rows that are not empty, MODALITIES first in their order; {} without any."""
    told = [r for r in rows if r]
    groups = [g for g in dict.fromkeys([*MODALITIES, *(g for r in told for g in r)]) if any(g in r for r in told)]
    return {g: sum(r.get(g, 0.0) for r in told) / len(told) for g in groups}


@dataclass(frozen=True)
class Sample:
    """One question of a benchmark. ``media`` maps a modality to files or in-memory objects."""

    id: str
    prompt: str
    media: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    target: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One answered question: what a scorer reads.

    ``answer`` is what was said without thoughts (:mod:`limelight.thinking`), whatever was passed: this is the one place
    that all scorers, judges and comparisons share.
    """

    id: str
    answer: str
    target: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    markers: Markers = field(default=MARKERS, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", self.markers.answer(self.answer))


PathLike = str | Path
