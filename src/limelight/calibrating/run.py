"""The grounding flag of a model, calibrated: ``limelight.calibrate(adapter, rows)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limelight.auditing.auditor import audit
from limelight.auditing.rows import Row, read_row
from limelight.benchmarks.data import Folder, Needed
from limelight.calibrating.fit import Objective, Observed, fit
from limelight.calibrating.labels import INVENTED, OTHER, SUPPORTED, check_labels, has_labels, word_labels
from limelight.calibration import Calibration
from limelight.decoding.answer import answer, end_tokens
from limelight.errors import DataError, SettingError, UnsupportedError
from limelight.models.adapter import Adapter, wrap
from limelight.report.words import words
from limelight.types import Clip, Generation, Prompt

Progress = Callable[[int, int], None]
Rows = Iterable[Mapping[str, Any]] | str | Path
Labelled = list[tuple[Row, Mapping[str, Any]]]
_UNSAID = "?"  # stands for the answer of a row until the model has given it


@dataclass(frozen=True)
class Settings:
    """How rows are answered and audited."""

    composite: str = "attnlrp"
    max_new_tokens: int = 64
    batch_size: int = 8
    progress: Progress | None = None


def calibrate(
    model: Any,
    rows: Rows,
    processor: Any = None,
    *,
    held_out: Rows | None = None,
    name: str | None = None,
    objective: str = "youden",
    curve: str = "logistic",
    composite: str = "attnlrp",
    max_new_tokens: int = 64,
    batch_size: int = 8,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Fit the threshold of the grounding flag, and the probability that a word is supported, on a model's answers.

    With labels (:mod:`limelight.calibrating.labels`), on the words that they tell of. Without, on the model's own answers:
    each prompt is answered twice, with its media and with blank ones of the same size (grey pictures, silence). Both answers
    are measured with the media at hand: words said only with the media count as supported, words said only without them as
    invented. These labels are rough, since a model invents with the media too: prefer a labelled file.

    Args:
        model: a transformers model (with ``processor``), or an Adapter.
        rows: mappings with media and prompt or messages (:mod:`limelight.auditing.rows`), the answer, which the model gives
            itself where there is none, and labels; or their file, beside which media files are looked for.
        held_out: labelled rows that choose nothing; the calibration tells how well it does on them.
        name: the model's, by which the calibration is known.
        objective: ``youden``, ``recall=0.9``, ``precision=0.9`` or ``false-flags=0.05``
            (:class:`limelight.calibrating.fit.Objective`).
        curve: ``logistic``, or ``isotonic`` for many words (a thousand or more).
        composite: of the meter.
        max_new_tokens: of the answers that the model gives.
        limit: of ``rows`` (None: all).
        progress: called with (rows done, rows in all).

    Returns:
        The calibration. ``adapter.calibration = it`` puts it to work; ``it.save(limelight.calibration.cache_file(name))`` keeps
        it where ``limelight.load(name)`` finds it.

    Raises:
        DataError: rows that cannot be read, too few words of either label, or scores that do not tell them apart.
        MissingExtraError: scikit-learn is not installed.
        SettingError: an unknown objective or curve.
    """
    Objective.of(objective)
    if batch_size < 1 or max_new_tokens < 1:
        raise SettingError(
            f"expected batch_size and max_new_tokens of at least 1, got {batch_size} and {max_new_tokens}",
            hint="8 and 64 are the defaults",
        )
    adapter = wrap(model, processor)
    settings = Settings(composite, max_new_tokens, batch_size, progress)
    checked = labelled_rows(rows)[:limit]
    later = None if held_out is None else labelled_rows(held_out)
    if later is not None and not has_labels(later[0][1]):
        raise DataError("the held-out rows have no labels", hint="supported, invented, correct or reference")
    told = has_labels(checked[0][1])
    found = observe(adapter, checked, settings)
    return fit(
        found, model=name or _name(adapter), objective=objective, curve=curve, composite=composite,
        labels="a labelled file" if told else "the model's own answers", traits=adapter.sizes,
        held_out=None if later is None else observe(adapter, later, settings),
    )  # fmt: skip


def labelled_rows(rows: Rows) -> Labelled:
    """Rows with the columns that label them; either all have labels or none.

    Raises:
        DataError: a row that cannot be read (named by its number), or no rows.
    """
    found: Labelled = []
    folder: Path | None = None
    if isinstance(rows, (str, Path)):
        path = Path(rows)
        folder = path.parent
        rows = Folder(folder).rows(Needed((path.name,), "you"))
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, Mapping):
                raise DataError(f"is a {type(row).__name__}, not a mapping", hint="{'image': ..., 'prompt': ...}")
            check_labels(row)
            (read,) = read_row({**_answered(row), "id": number + 1}, folder=folder)
        except DataError as error:
            raise DataError(f"row {number + 1}: {error.message}", hint=error.hint) from error
        found.append((read, row))
    if not found:
        raise DataError("there are no rows", hint="media, a prompt, and labels where there are some")
    without = [i for i, (_, row) in enumerate(found) if not has_labels(row)]
    if without and len(without) < len(found):
        raise DataError(
            f"{len(without)} of {len(found)} rows have no labels, such as row {without[0] + 1}",
            hint="supported, invented, correct or reference; or leave all labels out",
        )
    return found


def _answered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, (list, tuple)) and messages else {}
    said = row.get("answer") is not None or (isinstance(last, Mapping) and last.get("role") == "assistant")
    return row if said else {**row, "answer": _UNSAID, "unsaid": True}


def observe(adapter: Adapter, rows: Labelled, settings: Settings) -> Observed:
    """The words of all rows, measured and labelled."""
    z: list[float] = []
    rival: list[float] = []
    label: list[int] = []
    own = not has_labels(rows[0][1])
    for at in range(0, len(rows), settings.batch_size):
        part = rows[at : at + settings.batch_size]
        for generation, spoken in (_twice if own else _labelled)(adapter, part, settings):
            for word, told in spoken:
                step = next((s for s in generation.steps[word.start : word.stop] if s.grounding is not None), None)
                if step is not None and step.grounding is not None:
                    z.append(step.grounding)
                    rival.append(-math.inf if step.rival_grounding is None else step.rival_grounding)
                    label.append(told)
        if settings.progress is not None:
            settings.progress(min(at + settings.batch_size, len(rows)), len(rows))
    return Observed(np.array(z, float), np.array(rival, float), np.array(label, int))


def _labelled(
    adapter: Adapter, rows: Labelled, settings: Settings
) -> Iterator[tuple[Generation, list[tuple[Any, int]]]]:
    """Answers with their words' labels; the model answers the rows that have none."""
    unsaid = [row for row, _ in rows if row.extra.get("unsaid")]
    prompts = [adapter.prepare(row.messages(), regions=False) for row in unsaid]
    said = {row.id: g for row, g in zip(unsaid, _answers(adapter, prompts, settings), strict=True)}
    spoken = [(_saying(adapter, row, said[row.id]) if row.id in said else row, label) for row, label in rows]
    told = [(row, label) for row, label in spoken if row is not None]
    for found, (_, label) in zip(_audited(adapter, [row for row, _ in told], settings), told, strict=True):
        yield found, word_labels(found, label)


def _twice(adapter: Adapter, rows: Labelled, settings: Settings) -> Iterator[tuple[Generation, list[tuple[Any, int]]]]:
    """The model's answers with and without the media, both measured with them."""
    asked = [row for row, _ in rows]
    prompts = [adapter.prepare(row.messages(), regions=False) for row in asked]
    blank = [
        adapter.prepare(row.messages({k: [_blank(x) for x in v] for k, v in p.media.items()}), regions=False)
        for row, p in zip(asked, prompts, strict=True)
    ]
    seen, unseen = _answers(adapter, prompts, settings), _answers(adapter, blank, settings)
    for row, one, other in zip(asked, seen, unseen, strict=True):
        for said, against, label in ((one, other, SUPPORTED), (other, one, INVENTED)):
            forced = _saying(adapter, row, said)
            if forced is None:
                continue
            (found,) = _audited(adapter, [forced], settings)
            elsewhere = {w.text.casefold() for w in words(against)}
            spoken = [w for w in words(found) if not w.punctuation]
            yield found, [(w, OTHER if w.text.casefold() in elsewhere else label) for w in spoken]


def _answers(adapter: Adapter, prompts: Sequence[Prompt], settings: Settings) -> list[Generation]:
    """Greedy answers; one by one where the prompts cannot share a batch."""
    from limelight.decoding.methods.greedy import Greedy

    if not prompts:
        return []
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": settings.max_new_tokens}
    try:
        return answer(adapter, prompts, Greedy(), **given)
    except UnsupportedError:
        if len(prompts) == 1:
            raise
        return [answer(adapter, [p], Greedy(), **given)[0] for p in prompts]


def _saying(adapter: Adapter, row: Row, said: Generation) -> Row | None:
    """The row with an answer of the model; None where it said nothing."""
    ends = end_tokens(adapter)
    ids = tuple(t for t in said.token_ids if t not in ends)
    return replace(row, answer=said.text, token_ids=ids) if ids and said.text else None


def _audited(adapter: Adapter, rows: Sequence[Row], settings: Settings) -> list[Generation]:
    if not rows:
        return []
    found = audit(adapter, rows, batch_size=settings.batch_size, composite=settings.composite)
    return [a.answer for a in found]


def _blank(medium: Any) -> Any:
    """A medium of the same size that shows or plays nothing: grey, or silence."""
    from PIL import Image

    if isinstance(medium, Clip):
        return replace(medium, frames=tuple(_blank(f) for f in medium.frames))
    if isinstance(medium, tuple):  # (samples, rate)
        samples, rate = medium
        return np.zeros_like(np.asarray(samples)), rate
    if isinstance(medium, Image.Image):
        return Image.new("RGB", medium.size, (128, 128, 128))
    return np.full_like(np.asarray(medium), 128)


def _name(adapter: Adapter) -> str:
    return str(getattr(adapter.parent_model.config, "name_or_path", "")) or type(adapter.parent_model).__name__
