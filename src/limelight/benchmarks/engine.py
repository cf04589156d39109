"""Engines that answer a run's samples: in this process here, on Ray in ``ray_engine``. One outcome per sample, always."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from limelight.benchmarks.task import Answer, AnswerMany, Reply, opened
from limelight.errors import SettingError
from limelight.types import Sample


@dataclass(frozen=True)
class Outcome:
    """The result of a sample: a reply, or the error raised while answering."""

    id: str
    reply: Reply | None
    error: dict[str, str] | None
    seconds: float


class Engine(Protocol):
    """Answers samples in any order, with one ``Outcome`` each."""

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Outcome]: ...


@dataclass(frozen=True)
class Local:
    """Answers in this process, ``batch_size`` at a time when there is a batched callable.

    If a callable has a method ``prepare()``, it is called first: loading the model there keeps it out of the answers'
    timings, and a model that cannot be loaded stops the run instead of failing row by row.
    """

    answer: Answer | None = None
    answer_many: AnswerMany | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.answer is None and self.answer_many is None:
            raise SettingError("no callable to answer with", hint="pass answer(sample) or answer_many(samples)")
        if self.batch_size < 1:
            raise SettingError(f"batch_size must be at least 1, got {self.batch_size}", hint="1 answers one by one")

    def prepare(self) -> None:
        """Call ``prepare()`` of the callables that have it."""
        for callable_ in (self.answer, self.answer_many):
            getattr(callable_, "prepare", lambda: None)()

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Outcome]:
        if samples:
            self.prepare()
        for start in range(0, len(samples), self.batch_size):
            yield from self.ask(list(samples[start : start + self.batch_size]))

    def ask(self, batch: list[Sample]) -> list[Outcome]:
        """Answer one batch. When it raises, its samples are answered one by one, so that only the faulty ones fail."""
        start = time.perf_counter()
        try:
            replies = self._replies(batch)
        except Exception as error:  # noqa: BLE001 - any error of an answer is a result: counted, shown, retried
            if len(batch) > 1:
                return [outcome for sample in batch for outcome in self.ask([sample])]
            return [Outcome(batch[0].id, None, describe(error), time.perf_counter() - start)]
        each = (time.perf_counter() - start) / len(batch)
        return [Outcome(s.id, r, None, each) for s, r in zip(batch, replies, strict=True)]

    def _replies(self, batch: list[Sample]) -> list[Reply]:
        if self.answer_many is not None and (len(batch) > 1 or self.answer is None):
            found: Sequence[Any] = self.answer_many([opened(s) for s in batch])
            if len(found) != len(batch):
                raise SettingError(
                    f"answer_many returned {len(found)} answers for {len(batch)} samples",
                    hint="return one answer per sample, in order",
                )
        elif self.answer is not None:
            found = [self.answer(opened(s)) for s in batch]
        return [checked(r) for r in found]


def checked(reply: Any) -> Reply:
    """Validate an answer and return it as a ``Reply``; raises ``SettingError`` for other types or meta that is not JSON."""
    if isinstance(reply, str):
        return Reply(reply)
    if not isinstance(reply, Reply) or not isinstance(reply.text, str):
        raise SettingError(
            f"an answer must be str or Reply, got {type(reply).__name__}", hint="return the answer's text"
        )
    try:
        json.dumps(reply.meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"Reply.meta is not valid JSON: {error}", hint="convert tensors to lists, and NaN to None"
        ) from error
    return reply


def describe(error: BaseException) -> dict[str, str]:
    """Return type, message and traceback of an error, as stored in a row."""
    trace = "".join(traceback.format_exception(error, limit=-8))
    return {"type": type(error).__name__, "message": str(error)[:2000], "trace": trace[-6000:]}
