"""What a benchmark is: samples to ask, and measures to compute from the answers.

    Task.load(data, splits) -> Sample ...  answer(sample) -> str | Reply  ...  Task.score(records) -> Block ...

A task is one file in ``limelight/benchmarks/tasks`` that ends in ``TASK = Task(...)``; found by listing the folder.
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
    """An answer with more than its text.

    Attributes:
        text: the answer.
        meta: JSON values that a scorer may read. Known keys:
            ``shares``: modality -> share of the relevance of the answer, in [0, 1] (modality reliance);
            ``image_relevance``: ``[rows][columns]`` relevance on the picture's grid, or a list of such grids (spatial
            grounding); ``image_boxes``: the part of the picture each grid lies on, (left, top, right, bottom) in
            fractions, outside [0, 1] where the processor padded; None: not known; left out: one grid over all of it;
            ``audio_relevance``: ``{"scores": [...], "seconds": s}``, one score for every ``s`` seconds of sound
            (temporal grounding), and ``"duration"``, the sound's own seconds, where scores behind it are for padding;
            ``curves``: attribution -> ``{"insertion": [...], "deletion": [...]}``, the probability of the decision at
            equal fractions of positions kept or removed (faithfulness);
            ``evidence``: ``{"text": ..., "ends": [...], "scores": {name: [...]}}``, where each of the answer's tokens ends
            in its text, and one number a token for every score (detection of invented words);
            ``probe``: word -> what a probe of the media says for it, the ceiling of detection;
            ``answer_from``: where in ``text`` the answer begins, for thoughts that no marker in the text tells;
            ``tokens``: how many tokens were generated; ``peak_gb``: the most memory the device held so far.
    """

    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


def opened(sample: Sample) -> Sample:
    """The sample with its lazy media made: an item that can be called is replaced by what it returns."""
    media = {m: [x() if callable(x) else x for x in xs] for m, xs in sample.media.items()}
    return replace(sample, media=media)


Answer = Callable[[Sample], "str | Reply"]
AnswerMany = Callable[[list[Sample]], "Sequence[str | Reply]"]


@dataclass(frozen=True)
class Scoring:
    """How to score: the parser by name, the task's own files (synonyms, vocabularies), task options such as a judge."""

    parser: str = ""
    assets: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HubTable:
    """A copy of a split on the Hugging Face Hub: where it is, and how one of its rows becomes a ``Sample``."""

    repo: str
    split: str
    convert: Callable[[Mapping[str, Any], int], Sample | None]
    name: str | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: what ``limelight bench`` calls it.
        version: changes whenever a number could change.
        paper: where the benchmark was published.
        about: one line.
        modality: what is perceived.
        splits: every split, in the order of the tables.
        files: split -> the files it is read from; ``()`` where the task makes its own samples.
        load: samples of one split from a folder.
        score: pure function of the records.
        parsers: names of the answer parsers, the default first; empty where answers are not parsed.
        media: where the pictures or sounds come from, for the error that says they are missing.
        headline: patterns (fnmatch) of the metrics that tables show unless all are asked for.
        max_new_tokens: what an answer needs.
        wants: keys of ``Reply.meta`` without which the task cannot be scored.
        assets: files that scoring needs again; kept beside the answers.
        hub: split -> its copy on the Hub.
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

    def parser(self, name: str = "") -> str:
        """The parser of that name, the default for ``""``; ``SettingError`` for a name the task does not have."""
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
    """Every task of the folder, by name."""
    package = importlib.import_module("limelight.benchmarks.tasks")
    found = [
        importlib.import_module(f"{package.__name__}.{m.name}").TASK for m in pkgutil.iter_modules(package.__path__)
    ]
    return {task.name: task for task in sorted(found, key=lambda t: str(t.name))}


def task(name: str) -> Task:
    """The task called ``name``."""
    if name not in tasks():
        raise SettingError(f"there is no task {name!r}", hint=f"the tasks are {list(tasks())}")
    return tasks()[name]
