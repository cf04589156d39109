"""Batched decoding of compatible jobs: left-padded, with rows that stop and fail independently."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from limelight.decoding.answer import answer as decode
from limelight.decoding.methods.meter import meter
from limelight.errors import UnsupportedError
from limelight.models.adapter import Adapter
from limelight.server.answering import Row, rows_of
from limelight.server.limits import Limits
from limelight.server.worker import Job
from limelight.types import Step

log = logging.getLogger("limelight.server")
Fail = Callable[[Job, Exception], None]


class RowMonitor(StoppingCriteria):  # type: ignore[misc]
    """Passes every chosen token to its row, and stops finished rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.pending: dict[int, Step] = {}

    def stepped(self, row: int, step: Step) -> None:
        self.pending[row] = step

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Any:
        for index, step in self.pending.items():
            row = self.rows[index]
            if not (row.done or row.job.cancelled.is_set()):
                row.push(step)
        self.pending = {}
        return torch.tensor([row.stopped for row in self.rows], device=ids.device)


def answer(jobs: Sequence[Job], adapter: Adapter, limits: Limits, batch: int, fail: Fail) -> None:
    """Decode jobs of one key; each emits a :class:`TokenEvent` per token and a :class:`Finished` per answer, or fails alone."""
    rows: list[Row] = []
    for job in jobs:
        try:
            rows += rows_of(job, adapter, limits)
        except Exception as error:  # noqa: BLE001  # one job's media or settings must not affect others
            fail(job, error)
    for group in groups(rows, batch, limits.batch_tokens):
        if all(row.job.cancelled.is_set() for row in group):
            continue
        broken = _attempt(group, adapter)
        if broken is None:
            continue
        if len(group) > 1 and not isinstance(broken, UnsupportedError):
            log.warning("a batch of %d failed, retrying its answers one by one: %r", len(group), broken)
        for row in (r for r in group if not r.done):  # rows that have emitted tokens cannot be restarted
            alone = len(group) > 1 and not row.steps and not row.job.cancelled.is_set()
            problem = _attempt([row], adapter) if alone else broken
            if problem is not None and not row.job.cancelled.is_set():
                fail(row.job, problem)


def groups(rows: Sequence[Row], batch: int, positions: int) -> Iterator[list[Row]]:
    """Split rows into batches of at most ``batch`` rows and ``positions`` positions, including padding."""
    group: list[Row] = []
    for row in rows:
        widest = max(len(r.prompt.tokens) + r.room for r in (*group, row))
        if group and (len(group) >= batch or not row.request.together or widest * (len(group) + 1) > positions):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _attempt(rows: Sequence[Row], adapter: Adapter) -> Exception | None:
    """Decode rows to the end; return the error if any, without its frames, so that their tensors are freed."""
    try:
        decode_together(rows, adapter)
    except Exception as error:  # noqa: BLE001  # the caller fails each row
        return error.with_traceback(None) if len(rows) > 1 else error
    return None


def decode_together(rows: Sequence[Row], adapter: Adapter) -> None:
    """Decode one batch of rows with equal ``GenerationRequest.key``, or of one request.

    Raises:
        UnsupportedError: these prompts cannot share a batch. LimelightError: see :func:`limelight.generate`.
    """
    first, monitor = rows[0].request, RowMonitor(rows)
    decode(
        adapter,
        [row.prompt for row in rows],
        meter(first.strategy) if first.grounding else first.strategy,
        relevance=first.page,
        seeds=[row.seed for row in rows if row.seed is not None] or None,
        on_step=monitor.stepped,
        top_logprobs=max(row.request.top for row in rows),
        max_new_tokens=max(row.room for row in rows),
        stopping_criteria=StoppingCriteriaList([monitor]),
        **first.sampling,
    )
    for row in rows:
        row.finish()
