"""Definition of a benchmark task: samples to answer, and metrics computed from the answers.

    Task.load(data, splits) -> Sample ...  answer(sample) -> str | Reply  ...  Task.score(records) -> Block ...

A task is one file in ``limelight/benchmarks/tasks`` that ends in ``TASK = Task(...)``; the folder is searched.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limelight.errors import SettingError
from limelight.types import Modality, Record, Sample

if TYPE_CHECKING:
    from limelight.benchmarks.data import Folder, Needed
    from limelight.benchmarks.scorers.measure import Block


@dataclass(frozen=True)
class Reply:
    """An answer with metadata.

    Attributes:
        text: the answer.
        meta: JSON values that a scorer may read. Known keys:
            ``shares``: modality -> share of the relevance of the answer, in [0, 1] (modality reliance);
            ``image_relevance``: ``[rows][columns]`` relevance on the image's grid, or a list of such grids (spatial
            grounding); ``image_boxes``: the part of the image each grid covers, (left, top, right, bottom) in
            fractions, outside [0, 1] where the processor padded; None: unknown; omitted: one grid over the whole image;
            ``audio_relevance``: ``{"scores": [...], "seconds": s}``, one score per ``s`` seconds of audio (temporal
            grounding), and ``"duration"``, the clip's length in seconds, where scores after it are for padding;
            ``video_relevance``: ``{"scores": [[...], ...], "seconds": [...]}``, for each frame the scores of its positions
            (or one score) and its time (temporal grounding in video);
            ``curves``: attribution -> ``{"insertion": [...], "deletion": [...]}``, the probability of the decision at
            equal fractions of positions kept or removed (faithfulness);
            ``evidence``: ``{"text": ..., "ends": [...], "scores": {name: [...]}}``: where each token of the answer ends in
            its text, and one number per token for every score (detection of invented words);
            ``probe``: word -> the score of a probe of the media for it, the upper bound of detection;
            ``answer_from``: where in ``text`` the answer begins, for thoughts without a marker in the text;
            ``tokens``: number of generated tokens; ``peak_gb``: peak device memory so far.
    """

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def opened(sample: Sample) -> Sample:
    """Resolve a sample's lazy media: a callable item is replaced by its return value."""
    media = {m: [x() if callable(x) else x for x in xs] for m, xs in sample.media.items()}
    return replace(sample, media=media)


Answer = Callable[[Sample], "str | Reply"]
AnswerMany = Callable[[list[Sample]], "Sequence[str | Reply]"]


@dataclass(frozen=True)
class Scoring:
    """Scoring settings: the parser's name, the task's files (synonyms, vocabularies), task options such as a judge."""

    parser: str = ""
    assets: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HubTable:
    """A copy of a split on the Hugging Face Hub: its location, and the conversion of a row to a ``Sample``."""

    repo: str
    split: str
    convert: Callable[[Mapping[str, Any], int], Sample | None]
    name: str | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: the task's name in ``limelight bench``.
        version: changes whenever scores could change.
        paper: where the benchmark was published.
        about: one-line description.
        modality: the input modality.
        splits: all splits, in table order.
        files: split -> the files it is read from; ``()`` where the task generates its samples.
        load: yields the samples of one split from a folder.
        score: pure function of the records.
        parsers: names of the answer parsers, the default first; empty where answers are not parsed.
        media: the source of the images or audio, for the error when they are missing.
        headline: patterns (fnmatch) of the metrics that tables show by default.
        max_new_tokens: the length limit of an answer.
        wants: keys of ``Reply.meta`` without which the task cannot be scored.
        assets: files needed for rescoring; stored with the answers.
        hub: split -> its copy on the Hub.
        goal: what ``limelight tune`` optimises: a pattern of metrics, whose mean counts, and optionally a pattern of metrics whose
            mean must not get worse, such as the recall of captions.
        rubric: the default prompt of a judge of the task's answers; ``""``: that of ``scorers.judge``.
    """

    name: str
    version: str
    paper: str
    about: str
    modality: Modality
    splits: tuple[str, ...]
    files: Callable[[str], Sequence[Needed]]
    load: Callable[[Folder, str], Iterable[Sample]]
    score: Callable[[Sequence[Record], Scoring], list[Block]]
    parsers: tuple[str, ...] = ()
    media: str = ""
    headline: tuple[str, ...] = ("*",)
    max_new_tokens: int = 16
    wants: frozenset[str] = frozenset()
    assets: tuple[Needed, ...] = ()
    hub: Mapping[str, HubTable] = field(default_factory=dict)
    rubric: str = ""
    goal: tuple[str, ...] = ()

    def parser(self, name: str = "") -> str:
        """Return a parser's name, the default for ``""``; ``SettingError`` for a parser the task does not have."""
        if not name:
            return self.parsers[0] if self.parsers else ""
        if name not in self.parsers:
            raise SettingError(
                f"{self.name} has no answer parser {name!r}",
                hint=f"its parsers are {list(self.parsers)}" if self.parsers else "its answers are not parsed",
            )
        return name


@cache
def tasks() -> Mapping[str, Task]:
    """Return all tasks by name."""
    package = importlib.import_module("limelight.benchmarks.tasks")
    found = [
        importlib.import_module(f"{package.__name__}.{m.name}").TASK for m in pkgutil.iter_modules(package.__path__)
    ]
    return {task.name: task for task in sorted(found, key=lambda t: str(t.name))}


def task(name: str) -> Task:
    """Return the task called ``name``."""
    if name not in tasks():
        raise SettingError(f"unknown task {name!r}", hint=f"available tasks: {list(tasks())}")
    return tasks()[name]
