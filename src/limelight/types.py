"""The data types of the library: frozen, and independent of any model: messages -> Prompt -> Relevance -> Step -> Generation,
and Sample -> Record -> numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from limelight import display
from limelight.errors import SettingError
from limelight.regions import Box as Box
from limelight.regions import Clip as Clip
from limelight.regions import Interval as Interval
from limelight.regions import Region as Region
from limelight.regions import TakenView as TakenView
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

    ``grid``: the layout of the positions where known: ``(rows, columns)`` of an image, ``(frames, rows, columns)`` of a
    video. ``margin``: how many of its last columns contain no media (newline embeddings, row breaks). ``seconds``: the
    length of audio per position. ``region`` and ``interval``: the part of the original image, video or audio that the
    positions show (None: unknown).

    Raises:
        SettingError: no positions, or the number of grid cells differs from the number of positions.
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
                hint="omit spans without positions, or check the placeholders of the prompt",
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
        """Rows and columns without the margin; one row where the layout is unknown."""
        return (1, len(self)) if self.grid is None else (self.grid[-2], self.grid[-1] - self.margin)


class Inputs(dict[str, Any]):
    """Keyword arguments of ``model.forward`` for one row, with its spans and their regions in the originals, which
    ``Adapter.spans`` reads. A plain dict copy also works, but without regions."""

    spans: tuple[Span, ...] = ()
    template: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Prompt:
    """The processed messages: one row, ready for the model.

    ``tensors``: keyword arguments of ``model.forward``; ``tokens``: the tokenizer's text of each position; ``spans``:
    a partition of ``[0, len(tokens))``; ``turns``: the messages in the chat format, where it was made from messages;
    ``template``: text positions that the chat template added (role names, markers).
    """

    tensors: Mapping[str, Any]
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    media: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    turns: Sequence[Mapping[str, Any]] = field(default=(), repr=False, compare=False)
    template: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Relevance(display.Plotted):
    """How much each position contributed to one logit: ``R_i = sum_d x_id * df/dx_id`` under the composite's rules.

    Attributes:
        scores: float32 ``[T]``, signed, in units of the logit.
        tokens: ``T`` token texts.
        spans: a partition of ``[0, T)``.
        target: the token id whose logit was explained; ``target_token``: its text; ``logit``: its value.
        position: the position that predicted it (``T - 1`` when decoding).
        sinks: positions to exclude from shares and plots (attention sinks).
        against: where the difference of two logits was explained, the token id whose logit was subtracted, and
            ``against_token`` its text; ``logit`` is then the difference.
        template: positions of the chat template, which lists of words leave out; empty where unknown.
        media_inputs: name of a media tensor among the model's inputs (``pixel_values``) -> relevance of each of its entries,
            in its shape; {} unless relevance was carried on through the encoder.
        media_times: of those that are sounds, the time axis and the seconds between its entries.
    """

    scores: Tensor
    tokens: tuple[str, ...]
    spans: tuple[Span, ...]
    target: int
    target_token: str = ""
    logit: float = float("nan")
    position: int = -1
    sinks: tuple[int, ...] = ()
    media_inputs: Mapping[str, Tensor] = field(default_factory=dict, compare=False)
    media_times: Mapping[str, tuple[int, float]] = field(default_factory=dict, compare=False)
    against: int | None = None
    against_token: str = ""
    template: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        edges = [0, *(s.stop for s in self.spans)]
        valid = self.scores.ndim == 1 and edges[-1] == self.scores.shape[0] == len(self.tokens)
        if not valid or any(s.start != edge for s, edge in zip(self.spans, edges, strict=False)):
            raise SettingError(
                f"relevance needs scores [T], T tokens and spans that partition [0, T), got scores "
                f"{tuple(self.scores.shape)}, {len(self.tokens)} tokens and {[(s.start, s.stop) for s in self.spans]}",
                hint="create Relevance objects with attribute(), which keeps them consistent",
            )

    @property
    def explains(self) -> str:
        """What was explained, in words: "yes", or "yes rather than no"."""
        one = self.target_token.strip() or f"token {self.target}"
        return (
            one
            if self.against is None
            else f"{one} rather than {self.against_token.strip() or f'token {self.against}'}"
        )

    def total(self, modality: Modality | None = None) -> float:
        """Return the signed sum over a modality (all positions when None) without sinks: Phi_M, in units of the logit."""
        return float(self._masked()[self._positions(modality)].sum())

    def share(self, modality: Modality) -> float:
        """Return ``sum |R_i|`` over the modality divided by that over all positions; in [0, 1]; 0 when all are 0."""
        scores = self._masked().abs()
        total = float(scores.sum())
        return float(scores[self._positions(modality)].sum()) / total if total else 0.0

    def shares(self) -> dict[str, float]:
        """Return the ``share`` of every modality that has a span; they sum to 1."""
        return {m: self.share(m) for m in MODALITIES if any(s.modality == m for s in self.spans)}

    def spans_of(self, modality: Modality) -> tuple[Span, ...]:
        return tuple(s for s in self.spans if s.modality == modality)

    def on_grid(self, index: int = 0, modality: Modality = "image") -> Tensor:
        """Return the scores of the ``index``-th span of an image ``[rows, columns]`` or video ``[frames, rows, columns]``.

        The span's margin is excluded.
        """
        span = self._span(modality, index)
        scores = self.scores[span.start : span.stop]
        if span.grid is None:
            raise SettingError(
                f"the layout of {modality} span {index} ({len(span)} positions) is unknown",
                hint="use .scores[span.start:span.stop], or pass grid= when building the spans",
            )
        return scores.reshape(span.grid)[..., : span.grid[-1] - span.margin]

    def on_image(self, index: int = 0) -> tuple[tuple[Tensor, Region], ...]:
        """Return every grid on the ``index``-th image of the prompt: scores ``[rows, columns]`` and the region it shows.

        Most models have one grid; models that tile images have one per tile, and often one for the whole image.

        Raises:
            SettingError: no such image, or the regions of its positions are unknown.
        """
        found = [
            (self.scores[s.start : s.stop].reshape(s.grid)[:, : s.cells[1]], s.region)
            for s in self.spans_of("image")
            if s.region is not None and not s.region.frames and s.region.source == index
            if s.grid is not None and len(s.grid) == 2
        ]
        if not found:
            raise SettingError(
                f"the regions of image {index} are unknown",
                hint="attribute the tensors of Adapter.prepare, which determines them from the processor; a resampler's "
                "positions have no region",
            )
        return tuple(found)

    def on_audio(self, index: int = 0) -> tuple[Tensor, Tensor]:
        """Return scores ``[n]`` on the ``index``-th audio clip and their times ``[n, 2]`` (start, stop) in seconds.

        Padding positions are excluded.

        Raises:
            SettingError: no such clip, or the times of its positions are unknown.
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
                f"the times of the positions of audio clip {index} are unknown",
                hint="attribute the tensors of Adapter.prepare, which knows the audio",
            )
        return torch.cat(scores), torch.cat(times)

    def on_seconds(self, index: int = 0) -> tuple[Tensor, float]:
        """Return the scores of the ``index``-th audio span ``[n]`` and the seconds per position."""
        span = self._span("audio", index)
        if span.seconds is None:
            raise SettingError(
                f"the frame rate of audio span {index} ({len(span)} positions) is unknown",
                hint="pass the duration of the audio so that seconds per token can be computed",
            )
        return self.scores[span.start : span.stop], span.seconds

    def top(self, n: int = 5, modality: Modality | None = None) -> list[tuple[int, str, float]]:
        """Return the ``n`` positions with the largest ``|R_i|``: (position, token, score)."""
        import torch

        where = torch.tensor(self._positions(modality), dtype=torch.long)
        order = self._masked()[where].abs().argsort(descending=True)[:n]
        return [(int(i), self.tokens[int(i)], float(self.scores[int(i)])) for i in where[order]]

    def without_sinks(self, positions: Iterable[int] = (0,)) -> Relevance:
        """Return the relevance with some positions (attention sinks) excluded from shares and plots."""
        return replace(self, sinks=tuple(sorted(set(positions))))

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
        token, text: id and text.
        logprob: natural log of its probability in the distribution it was chosen from (after processors).
        relevance: its relevance by a backward pass: of the optimised forward pass under exact LIME, else of the unmodified
            model. None where it was not requested.
        shares: modality -> ``sum |R_i|`` over its positions divided by that over all; ``relevance.shares()``, so in [0, 1]
            and summing to 1. {} where there is no relevance.
        intervened: whether the strategy changed the distribution at this token.
        plain: the greedy token of the unmodified model, when the strategy knows it.
        losses: name -> values, one per optimisation step.
        candidates: (token id, text, logit, Phi_M) of the top candidates, when a meter ran.
        grounding: support of the token by the media relative to the whole vocabulary: the z-score of its Phi_M
            (:mod:`limelight.grounding.score`) over all media, by the meter in forward mode. None where no meter ran or the
            prompt has no media.
        support: the same in units of the logit, ``Phi_M`` less its mean over the vocabulary: how many logits the media add to
            this token rather than to any. Decides which segments of a transcript are invented.
        rival_grounding: the highest score of another plausible token (probability at least .001); None where there is none.
        grounding_by_modality: modality -> the same for that modality's positions; {} where ``grounding`` is None.
        p_supported: the probability that the token is supported by the media, by the model's calibration; None without one.
        flagged: ``grounding`` is below the flag's threshold while ``rival_grounding`` is not
            (:func:`limelight.grounding.score.flagged`).
        contributions: modality -> its part of the token's logit ``l``, by the meter in forward mode:
            ``|Phi_m| / (sum_m |Phi_m| + |l - sum_m Phi_m|)`` with Phi_m the signed sum over the modality's positions; text is
            the rest; where the messages contain answers of earlier turns, these are a further group (``earlier answers``). In [0, 1], summing to 1. {} where no meter
            ran. Not comparable with ``shares``, in which positions of one modality with opposite signs do not cancel.
        top_logprobs: (text, natural log of its probability) of the most likely tokens in the distribution it was chosen
            from, best first; () where none were requested.
        views: at the token where a strategy looked at the media again: the views it took, the whole medium first.
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
    views: tuple[TakenView, ...] = ()
    support: float | None = None


@dataclass(frozen=True)
class Generation(display.Documented):
    """The result of ``generate``: the answer and how it was generated.

    ``flag`` is the rule of ``Step.flagged``: its ``threshold``, ``needs_rival``, and whether they are a ``default`` that was not
    calibrated for this model (:mod:`limelight.calibration`); {} where no meter ran. ``ended``: the last step is an end marker.
    """

    text: str
    token_ids: tuple[int, ...]
    steps: tuple[Step, ...]
    prompt: Prompt
    strategy: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    flag: Mapping[str, Any] = field(default_factory=dict)
    ended: bool = False

    def __str__(self) -> str:
        return self.text

    @property
    def said(self) -> tuple[Step, ...]:
        """The steps without the end marker, which is no part of ``text``; all steps where nothing else was generated."""
        return self.steps[:-1] if self.ended and len(self.steps) > 1 else self.steps

    def shares(self) -> dict[str, float]:
        """Return the mean of ``Step.shares`` (parts of the relevance, backward pass) over ``said`` where known, or {}."""
        return mean_parts([s.shares for s in self.said])

    def contributions(self) -> dict[str, float]:
        """Return the mean of ``Step.contributions`` (parts of the logit, meter) over ``said`` where known, or {}."""
        return mean_parts([s.contributions for s in self.said])


def mean_parts(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average group -> part over the non-empty rows, MODALITIES first in their order; {} without any."""
    filled = [r for r in rows if r]
    groups = [g for g in dict.fromkeys([*MODALITIES, *(g for r in filled for g in r)]) if any(g in r for r in filled)]
    return {g: sum(r.get(g, 0.0) for r in filled) / len(filled) for g in groups}


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
    """One answered question: the input of a scorer.

    ``answer`` never contains reasoning (:mod:`limelight.thinking`): it is removed here, once for all scorers, judges and
    comparisons.
    """

    id: str
    answer: str
    target: Any = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    markers: Markers = field(default=MARKERS, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "answer", self.markers.answer(self.answer))


PathLike = str | Path
