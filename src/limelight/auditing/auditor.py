"""Auditing finished answers from any source: ``limelight.audit(adapter, rows)``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limelight.auditing.audited import Audit
from limelight.auditing.forward import AnsweredPrompt, measure
from limelight.auditing.rows import Row, check_turns, read_row
from limelight.calibration import flag_rule
from limelight.decoding.dual import calibration_of, check_composite
from limelight.errors import DataError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter, wrap
from limelight.models.answers import answer_tokens, earlier_answers
from limelight.thinking import Markers, markers_of, spoken
from limelight.types import Generation


def audit(
    model: Any,
    rows: Iterable[Mapping[str, Any] | Row],
    processor: Any = None,
    *,
    batch_size: int = 1,
    composite: str = "attnlrp",
    turns: str = "last",
    thoughts: Iterable[Sequence[str]] | Markers | None = None,
) -> list[Audit]:
    """Measure which words of finished answers the media support, in one forward pass per answer and without generating.

    The scores equal those of ``limelight.generate(..., strategy="meter")`` while generating the same answer, whatever the
    origin of the answer. Cost: a forward pass with twice the rows, or three times with earlier answers
    (``python -m bench.audit``).

    Args:
        model: a transformers model (with ``processor``), or an :class:`Adapter`, whose calibration the flags use.
        rows: mappings with media, prompt or messages, and answer (:mod:`limelight.auditing.rows`); media may also be
            objects. All rows are validated before the first is audited.
        batch_size: number of answers per batch, if their prompts can share one; results do not depend on it.
        composite: ``attnlrp`` or ``cp-lrp``.
        turns: ``last``: the last answer of each row; ``all``: every answer of its conversation, given the preceding turns.
        thoughts: pairs of markers around thoughts, in addition to the usual ones; see
            :func:`limelight.thinking.markers_of`.

    Returns:
        An :class:`Audit` for each answer, in order.

    Raises:
        DataError: invalid rows, identified by their numbers.
        PromptError, MediaError, UnsupportedError: see :func:`limelight.generate`.

    Example:
        >>> found = limelight.audit(adapter, [{"image": "photo.png", "prompt": "What is this?", "answer": "A red cup."}])
        ... # doctest: +SKIP
    """
    check_composite(composite)
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size}", hint="1 audits one by one")
    checked, markers = checked_rows(rows, turns=turns), markers_of(thoughts)
    adapter = wrap(model, processor)
    found: list[Audit] = []
    for at in range(0, len(checked), batch_size):
        found += audit_batch(adapter, checked[at : at + batch_size], composite=composite, markers=markers)
    return found


def checked_rows(
    rows: Iterable[Mapping[str, Any] | Row], *, turns: str = "last", folder: Path | None = None
) -> list[Row]:
    """Validate rows and convert them to answers to audit.

    Raises:
        DataError: some rows are invalid; the first ten are listed.
    """
    check_turns(turns)
    found: list[Row] = []
    bad: list[str] = []
    if isinstance(rows, (Mapping, Row, str)):
        raise DataError(f"expected rows, got one {type(rows).__name__}", hint="audit(adapter, [row])")
    number = -1
    for number, row in enumerate(rows):
        try:
            found += (
                [row] if isinstance(row, Row) else read_row(_mapping(row), number=number, folder=folder, turns=turns)
            )
        except DataError as error:
            bad.append(f"    row {number + 1}: {error.message}")
    names = Counter(r.name for r in found)
    bad += [f"    the id {n!r} occurs {count} times" for n, count in names.items() if count > 1]
    if bad or not found:
        listed = "\n".join([*bad[:10], *(["    ..."] if len(bad) > 10 else [])]) or "    there are none"
        raise DataError(
            f"{len(bad)} of {number + 1} rows cannot be audited:\n{listed}",
            hint="correct them; nothing has been audited yet",
        )
    return found


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(
            f"is a {type(row).__name__}, not a mapping", hint="{'image': ..., 'prompt': ..., 'answer': ...}"
        )
    return row


def audit_batch(
    adapter: Adapter,
    rows: Sequence[Row],
    *,
    composite: str = "attnlrp",
    markers: Markers | None = None,
    regions: bool = True,
) -> list[Audit]:
    """Audit rows with decoded media in one batch, or one by one if their prompts cannot share a batch."""
    return audited(
        adapter, rows, [finished(adapter, row, regions=regions) for row in rows], composite=composite, markers=markers
    )


def audited(
    adapter: Adapter,
    rows: Sequence[Row],
    prompts: Sequence[AnsweredPrompt],
    *,
    composite: str = "attnlrp",
    markers: Markers | None = None,
) -> list[Audit]:
    """Audit rows with prepared prompts in one batch, or one by one if their prompts cannot share a batch."""
    try:
        steps = measure(adapter, prompts, composite=composite)
    except UnsupportedError:
        if len(rows) == 1:
            raise
        steps = [measure(adapter, [one], composite=composite)[0] for one in prompts]
    markers = markers_of(None) if markers is None else markers
    settings, rule = {"composite": composite}, flag_rule(calibration_of(adapter, composite))
    found = []
    for row, one, own in zip(rows, prompts, steps, strict=True):
        marked = spoken(adapter.tokenizer, one.tokens, one.prompt.tensors[adapter.names.ids][0].tolist(), markers)
        text = markers.answer(marked.text, opened=marked.opened)
        flag = rule if any(s.grounding is not None for s in own) else {}
        written = Generation(marked.text, one.tokens, own, one.prompt, "audit", settings, flag)
        found.append(Audit(row, written, marked.answered, text))
    return found


def finished(adapter: Adapter, row: Row, *, regions: bool = True) -> AnsweredPrompt:
    """Prepare a row for the model: prompt, answer tokens, and the positions of earlier answers."""
    messages = row.messages()
    prompt = adapter.prepare(messages, regions=regions)
    ids = row.token_ids if row.token_ids is not None else answer_tokens(adapter, messages, row.answer)
    earlier = earlier_answers(adapter, messages, prompt) if row.turn else ()
    return AnsweredPrompt(prompt, ids, earlier)
