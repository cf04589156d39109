"""Jobs that agree, decoded together: one left-padded batch, and every row lives, stops and fails by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from limelight.decoding.generate import settings_of
from limelight.decoding.loop import custom_generate
from limelight.decoding.many import collate, pad_id, shifted
from limelight.decoding.methods.meter import meter
from limelight.decoding.strategy import Run, Session, Strategy, TokenSampler
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.server.answering import Row, rows_of
from limelight.server.limits import Limits
from limelight.server.worker import Job
from limelight.types import Step

log = logging.getLogger("limelight.server")
Fail = Callable[[Job, Exception], None]


class Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees every token after its choice: passes it to its row, and stops the rows that want no more."""

    def __init__(self, rows: Sequence[Row], adapter: Adapter) -> None:
        self.rows, self.adapter = rows, adapter
        self.chooser: TokenSampler | None = None
        self.pending: dict[int, Step] = {}

    def stepped(self, row: int, step: Step) -> None:
        self.pending[row] = step

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Any:
        for index, step in self.pending.items():
            row = self.rows[index]
            if not (row.done or row.job.cancelled.is_set()):
                row.said(step, self._top(index, row.order.top))
        self.pending = {}
        return torch.tensor([row.stopped for row in self.rows], device=ids.device)

    def _top(self, row: int, count: int) -> tuple[tuple[str, float], ...]:
        scores = None if self.chooser is None else self.chooser.last
        if not count or scores is None:
            return ()
        found = torch.log_softmax(scores[row].double(), dim=-1).topk(min(count, scores.shape[-1]))
        words = self.adapter.tokens(found.indices)
        return tuple((w, max(float(v), -9999.0)) for w, v in zip(words, found.values, strict=True))


@dataclass(frozen=True)
class Watched:
    """A strategy whose chooser the watch may look at."""

    inner: Strategy
    watch: Watch

    @property
    def needs_percept(self) -> bool:
        return bool(getattr(self.inner, "needs_percept", True))

    @property
    def name(self) -> str:
        return self.inner.name

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()

    def session(self, run: Run) -> Session:
        self.watch.chooser = run.chooser
        return self.inner.session(run)


def answer(jobs: Sequence[Job], adapter: Adapter, limits: Limits, batch: int, fail: Fail) -> None:
    """Work on jobs of one key; each is told :class:`TokenEvent` a token and :class:`Finished` an answer, or fails by itself."""
    rows: list[Row] = []
    for job in jobs:
        try:
            rows += rows_of(job, adapter, limits)
        except Exception as error:  # noqa: BLE001  # one job's media or settings are no concern of the others
            fail(job, error)
    for group in groups(rows, batch, limits.batch_tokens):
        if all(row.job.cancelled.is_set() for row in group):
            continue
        broken = _attempt(group, adapter)
        if broken is None:
            continue
        if len(group) > 1 and not isinstance(broken, UnsupportedError):
            log.warning("a batch of %d failed, its answers are tried one by one: %r", len(group), broken)
        for row in (r for r in group if not r.done):  # what has begun cannot be begun again
            alone = len(group) > 1 and not row.steps and not row.job.cancelled.is_set()
            problem = _attempt([row], adapter) if alone else broken
            if problem is not None and not row.job.cancelled.is_set():
                fail(row.job, problem)


def groups(rows: Sequence[Row], batch: int, positions: int) -> Iterator[list[Row]]:
    """Consecutive rows that share a batch: at most ``batch`` of them and ``positions`` positions, padding counted."""
    group: list[Row] = []
    for row in rows:
        widest = max(len(r.prompt.tokens) + r.room for r in (*group, row))
        if group and (len(group) >= batch or not row.order.together or widest * (len(group) + 1) > positions):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _attempt(rows: Sequence[Row], adapter: Adapter) -> Exception | None:
    """Decode rows to their ends; returns what went wrong (its frames, and the tensors in them, are let go)."""
    try:
        decode_together(rows, adapter)
    except Exception as error:  # noqa: BLE001  # the caller tells each row
        return error.with_traceback(None) if len(rows) > 1 else error
    return None


def decode_together(rows: Sequence[Row], adapter: Adapter) -> None:
    """One batch. Rows whose settings agree (``GenerationRequest.key``), or rows of one order.

    Raises:
        UnsupportedError: these prompts cannot share a batch. LimelightError: see :func:`limelight.generate`.
    """
    first, prompts = rows[0].order, [row.prompt for row in rows]
    watch = Watch(rows, adapter)
    tensors, pads = collate(prompts, pad=pad_id(adapter))
    given = {
        **first.sampling,
        "max_new_tokens": max(row.room for row in rows),
        "stopping_criteria": StoppingCriteriaList([watch]),
    }
    seeds = [row.seed for row in rows if row.seed is not None] or None
    method = custom_generate(
        Watched(meter(first.strategy) if first.grounding else first.strategy, watch),
        processor=adapter.processor,
        seed=seeds,
        media=prompts[0].media if len(rows) == 1 else None,
        tensors=tensors,
        spans=[shifted(p.spans, pad) for p, pad in zip(prompts, pads, strict=True)],
        details=first.page,
        on_step=watch.stepped,
        whole=adapter,
    )
    adapter.model.generate(**tensors, custom_generate=method, **settings_of(given))
    for row in rows:
        row.finish()
