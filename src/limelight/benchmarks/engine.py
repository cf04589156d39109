"""How a run's samples get answered: in this process here, on Ray in ``ray_engine``. One outcome a sample, whatever happens."""

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
    """What became of a sample: a reply, or the error that answering it raised."""

    id: str
    reply: Reply | None
    error: dict[str, str] | None
    seconds: float


class Engine(Protocol):
    """Answers samples in any order, one ``Outcome`` each."""

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Outcome]: ...


@dataclass(frozen=True)
class Local:
    """Answers in this process, ``batch_size`` at a time when there is a batched callable.

    A callable with a method ``prepare()`` gets it called first: to load its model outside of any answer's time, and so
    that a model that cannot be loaded stops the run instead of failing row by row.
    """

    answer: Answer | None = None
    answer_many: AnswerMany | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.answer is None and self.answer_many is None:
            raise SettingError("nothing to answer with", hint="pass answer(sample) or answer_many(samples)")
        if self.batch_size < 1:
            raise SettingError(f"batch_size must be at least 1, got {self.batch_size}", hint="1 answers one by one")

    def prepare(self) -> None:
        """Let the callables make ready."""
        for callable_ in (self.answer, self.answer_many):
            getattr(callable_, "prepare", lambda: None)()

    def __call__(self, samples: Sequence[Sample]) -> Iterator[Outcome]:
        if samples:
            self.prepare()
        for start in range(0, len(samples), self.batch_size):
            yield from self.ask(list(samples[start : start + self.batch_size]))

    def ask(self, batch: list[Sample]) -> list[Outcome]:
        """Outcomes of one batch. When a batch raises, its samples are asked one by one, so that only the guilty fail."""
        start = time.perf_counter()
        try:
            replies = self._replies(batch)
        except Exception as error:  # noqa: BLE001 - whatever an answer raises is a result: counted, shown, retried
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
                    f"answer_many gave {len(found)} answers to {len(batch)} samples",
                    hint="one answer a sample, in order",
                )
        elif self.answer is not None:
            found = [self.answer(opened(s)) for s in batch]
        return [checked(r) for r in found]


def checked(reply: Any) -> Reply:
    """The reply as a ``Reply``; raises ``SettingError`` when it is neither text nor JSON-able."""
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
            f"Reply.meta is not JSON: {error}", hint="turn tensors into lists, and NaN into None"
        ) from error
    return reply


def describe(error: BaseException) -> dict[str, str]:
    """Type, message and trace of an error, as it is kept in a row."""
    trace = "".join(traceback.format_exception(error, limit=-8))
    return {"type": type(error).__name__, "message": str(error)[:2000], "trace": trace[-6000:]}
