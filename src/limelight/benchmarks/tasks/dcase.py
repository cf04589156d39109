"""Temporal grounding on DCASE 2019 task 4, public evaluation: share of relevance inside the sound event."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from limelight.benchmarks.data import Folder, Needed, Row, column, text
from limelight.benchmarks.scorers.grounding import Sign, grounding_block, reliance
from limelight.benchmarks.scorers.measure import Block
from limelight.benchmarks.scorers.placed import place_events, seen_block
from limelight.benchmarks.scorers.yes_no import COMMON, yes_no
from limelight.benchmarks.task import Scoring, Task
from limelight.errors import DataError
from limelight.types import Record, Sample

ORIGIN = "https://github.com/turpaultn/dcase2019_task4"
FILES = {
    "validation": ("validation.tsv", "validation.csv", "metadata/validation/validation.csv"),
    "eval": ("public.tsv", "eval/public.csv", "metadata/eval/public.csv"),
}


def _file(split: str) -> Needed:
    return Needed(FILES[split], ORIGIN)


def load(folder: Folder, split: str) -> Iterator[Sample]:
    """Yield one question per clip and event class in it; the target is the list of [onset, offset], in seconds."""
    sounds = Needed((f"audio/{split}/", f"audio/{split}/public/", "audio/", "./"), ORIGIN)
    events: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    where = FILES[split][0]
    rows: dict[tuple[str, str], str] = {}

    def event(row: Row) -> None:
        clip, label = text(where, row, "filename"), column(where, row, "event_label")
        onset, offset = (column(where, row, name) for name in ("onset", "offset"))
        if not label or onset in ("", None):
            return  # clips without events
        try:
            span = float(onset), float(offset)
        except (TypeError, ValueError) as error:
            raise DataError(f"{clip}: {error}", hint="onset and offset are seconds") from error
        if not 0 <= span[0] <= span[1] < math.inf:
            raise DataError(f"{clip}: an event from {onset} to {offset} s", hint="expected 0 <= onset < offset")
        if span[1] > span[0]:
            events[clip, label].append(span)
            rows.setdefault((clip, label), row.where)

    for _ in folder.samples(_file(split), event):
        pass
    for (clip, label), spans in events.items():
        with folder.rejected.row(rows[clip, label]):
            prompt = f"Is there a sound of {label.replace('_', ' ').lower()} in the audio?"
            meta = {"split": split, "cluster": clip, "label": label, "gold": "yes"}
            sound = folder.media(sounds, clip)
            yield Sample(f"{split}/{clip}/{label}", prompt, {"audio": [sound]}, sorted(spans), meta)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Temporal grounding over all answers and by event class, and the accuracy of the answers (``heard``).

    Answers without ``audio_relevance`` in their ``Reply.meta``, and events outside the model's input, are counted but not
    scored; padding positions are excluded (:mod:`limelight.benchmarks.scorers.placed`).
    """
    sign: Sign = scoring.options.get("sign", "abs")
    placed = [(r, place_events(r, [(on, off) for on, off in r.target])) for r in records]
    rows = [(r, p.relevance, p.coverage) for r, p in placed if p is not None and p.seen]
    labels = sorted({str(r.meta["label"]) for r, _, _ in rows})
    each = [grounding_block(f"temporal/{n}", [x for x in rows if x[0].meta["label"] == n], sign) for n in labels]
    labelled = [replace(r, target=r.meta["gold"]) for r in records]
    answers = [yes_no("heard", labelled, scoring.parser)] if labelled else []
    visible = seen_block(placed)
    return [grounding_block("temporal", rows, sign), *each, visible, *answers, *reliance("", records, "audio")]


TASK = Task(
    name="dcase",
    version="2",
    paper="Turpault et al., Sound event detection in domestic environments, DCASE 2019 (task 4)",
    about="temporal grounding: relevance inside the true event over total relevance on the audio",
    modality="audio",
    splits=tuple(FILES),
    files=lambda split: [_file(split)],
    load=load,
    score=score,
    parsers=("strict", "cascade", "official", *COMMON),
    media=f"{ORIGIN}, folder audio/validation or audio/eval",
    headline=(
        "temporal/grounding",
        "temporal/chance",
        "temporal/pointing game",
        "region seen",
        "heard/accuracy",
        "audio reliance",
    ),
    max_new_tokens=8,
    wants=frozenset({"audio_relevance"}),
    goal=("temporal/grounding",),
)
