"""Auditing a file of answers: stored row by row, resumed after any interruption, on one machine or several.

DIR/run.json, rows.jsonl        manifest and one line per answer, as in any run of :mod:`limelight.benchmarks.runner`
DIR/results.json                the summary, with bootstrap intervals
DIR/answers.csv  sentences.csv  words.csv  tokens.csv     (and .parquet)
DIR/index.html   pages/         the worst answers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from limelight.auditing.audited import Audit, layout, prompt_of, step_of
from limelight.auditing.auditor import audit_batch
from limelight.auditing.pages import write_pages
from limelight.auditing.rows import Row, check_turns, read_row
from limelight.auditing.tables import check_formats, write_tables
from limelight.benchmarks.data import Folder, Needed
from limelight.benchmarks.data import Row as FileRow
from limelight.benchmarks.engine import Engine, Local
from limelight.benchmarks.results import Results, Run
from limelight.benchmarks.rowlog import locked
from limelight.benchmarks.runner import run as run_task
from limelight.benchmarks.scorers.measure import Block, Measure, block, share
from limelight.benchmarks.task import Reply, Scoring, Task
from limelight.calibration import Calibration, check_fits, flag_rule
from limelight.decoding.dual import check_composite
from limelight.errors import DataError, SettingError
from limelight.media.worker import read
from limelight.models.adapter import Adapter
from limelight.models.loading import calibration_for, load
from limelight.thinking import markers_of
from limelight.types import Generation, PathLike, Record, Sample

KEY = "audit"  # of the audit in a row's reply


@dataclass(frozen=True)
class Auditor:
    """Audits the samples of a run. The model is loaded at first use, so that an Auditor can be sent to worker processes.

    Attributes:
        model: a folder, a name on the Hub, or a shipped miniature.
        thoughts: see :func:`limelight.thinking.markers_of`.
        dtype, device, device_map, revision, trust_remote_code: settings of ``limelight.load``.
        calibration: see ``limelight.load``; resolved at creation, so that all workers use the same one.
    """

    model: str
    composite: str = "attnlrp"
    thoughts: tuple[tuple[str, str], ...] | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    calibration: str | Path | Calibration | None = "auto"

    def __post_init__(self) -> None:
        check_composite(self.composite)
        markers_of(self.thoughts)
        object.__setattr__(self, "calibration", calibration_for(self.model, self.calibration))

    def identity(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, for the run's manifest."""
        of = {"revision": self.revision} if self.revision is not None else {}
        thoughts = {} if self.thoughts is None else {"thoughts": [list(p) for p in self.thoughts]}
        flag = flag_rule(self.calibration if isinstance(self.calibration, Calibration) else None)
        return {"model": self.model, **of, "dtype": self.dtype, "composite": self.composite, **thoughts, "flag": flag}

    def prepare(self) -> None:
        """Load the model."""
        self.adapter()

    def adapter(self) -> Adapter:
        adapter = _loaded(self.model, self.dtype, self.device, self.trust_remote_code, self.revision, self.device_map)
        if isinstance(self.calibration, Calibration):
            check_fits(self.calibration, adapter.sizes)
        adapter.calibration = self.calibration if isinstance(self.calibration, Calibration) else None
        return adapter

    def __call__(self, sample: Sample) -> Reply:
        return self.many([sample])[0]

    def many(self, samples: Sequence[Sample]) -> list[Reply]:
        """Audit one batch, or its samples one by one if they cannot share it."""
        rows = [opened(Row.of(s)) for s in samples]
        found = audit_batch(self.adapter(), rows, composite=self.composite, markers=markers_of(self.thoughts))
        return [self._reply(a) for a in found]

    def _reply(self, audit: Audit) -> Reply:
        row = {**audit.to_json(), "prompt": layout(audit.generation.prompt), "written": audit.generation.text}
        return Reply(audit.row.answer, {KEY: {**row, "answer": audit.text}})


@lru_cache(maxsize=1)
def _loaded(
    model: str, dtype: str, device: str | None, trust: bool, revision: str | None, device_map: str | None
) -> Adapter:
    given = {"revision": revision, "device_map": device_map}
    further: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    return load(model, dtype=dtype, device=device, trust_remote_code=trust, calibration=None, **further)


def opened(row: Row) -> Row:
    """Return the row with its files decoded in separate, limited processes."""

    def one(kind: str, medium: Any) -> Any:
        is_file = isinstance(medium, (str, Path, bytes, Mapping))
        return read(kind, medium, group="audit") if is_file else medium

    return replace(row, media={k: [one(k, x) for x in v] for k, v in row.media.items()})


def audit_task(file: Path, turns: str = "last") -> Task:
    """Return a benchmark task with the rows of a file.

    Raises:
        SettingError: unknown turns. DataError: the file does not exist.
    """
    check_turns(turns)
    if not file.is_file():
        raise DataError(f"there is no file {str(file)!r}", hint="JSON lines, a JSON array, CSV or TSV of answers")
    needed = Needed((file.name,), "you")

    def samples(folder: Folder, _: str) -> Iterator[Sample]:
        made: list[Sample] = []

        def first(row: FileRow) -> Sample:
            found = read_row(row, number=row.number, folder=file.parent, turns=turns)
            made.extend(r.sample() for r in found)
            return made.pop()

        for sample in folder.samples(needed, first):
            yield from made
            made.clear()
            yield sample

    return replace(AUDIT, files=lambda _: (needed,), load=samples)


MEASURES = (
    share("flagged words", "flagged_words", "words", higher_is_better=False),
    share("answers with a flagged word", "flagged", "answers", higher_is_better=False),
    share("grounding of a word", "grounding", "grounded", unit=""),
    share("log-probability of a token", "logprob", "tokens", unit=""),
    Measure("words", lambda sums: sums["words"], "count", None),
    Measure("tokens", lambda sums: sums["tokens"], "count", None),
)


def score(records: Sequence[Record], scoring: Scoring) -> list[Block]:
    """Summarise an audit: rates over words and answers, means over words and tokens; each conversation is one cluster."""
    audited = [(r, r.meta[KEY]) for r in records if KEY in r.meta]
    rows = [(r.id, _sums(a)) for r, a in audited]
    names = ("flagged_words", "words", "flagged", "answers", "grounding", "grounded", "logprob", "tokens")
    return [block("", rows, MEASURES, [str(r.meta["id"]) for r, _ in audited], names)]


def _sums(audit: Mapping[str, Any]) -> dict[str, float]:
    scores = [w["grounding"] for w in audit["words"] if w["grounding"] is not None]
    logprobs = [t["logprob"] for t in audit["tokens"] if t["logprob"] is not None and not t.get("thought")]
    flagged = sum(w["flagged"] for w in audit["words"])
    return {
        "flagged_words": flagged, "words": len(audit["words"]), "flagged": float(flagged > 0), "answers": 1.0,
        "grounding": sum(scores), "grounded": len(scores), "logprob": sum(logprobs), "tokens": len(logprobs),
    }  # fmt: skip


# An audit's run, as read from its folder; :func:`audit_task` adds the file of answers.
AUDIT = Task(
    name="audit",
    version="1",
    paper="",
    about="Which words of finished answers the media support.",
    modality="image",
    splits=("answers",),
    files=lambda _: (),
    load=lambda folder, split: (),
    score=score,
    headline=("*",),
)


def audits_of(run: Run, samples: Mapping[str, Sample] | None = None) -> list[Audit]:
    """Return the audits in a run's log, in order; ``samples``: by name, whose media are attached without decoding."""
    found = []
    for name, line in run.rows.items():
        stored = line.get("reply", {}).get(KEY)
        if stored is None:
            continue
        media = samples[name].media if samples is not None and name in samples else {}
        sample = Sample(name, line["prompt"], media, meta=line["meta"])
        steps = tuple(step_of(t) for t in stored["tokens"])
        written = Generation(
            stored["written"], tuple(s.token for s in steps), steps, prompt_of(stored["prompt"]), "audit",
            {"composite": run.settings["composite"]}, stored["flag"],
        )  # fmt: skip
        answered = tuple(not t.get("thought") for t in stored["tokens"])
        found.append(Audit(Row.of(sample), written, answered, stored["answer"]))
    return found


def audit_file(
    answers: PathLike,
    auditor: Auditor,
    out: PathLike,
    *,
    turns: str = "last",
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 1,
    engine: Engine | None = None,
    skip_bad_rows: bool = False,
    formats: Sequence[str] = ("csv",),
    pages: int = 20,
    maps: bool = False,
    progress: bool = True,
) -> Results:
    """Audit a file of answers, or resume such a run: finished rows are kept while the row and its media are unchanged.

    Args:
        answers: JSON lines, a JSON array, CSV or TSV; see :mod:`limelight.auditing.rows`.
        turns: ``last`` or ``all``, see :func:`limelight.audit`.
        limit, shard, skip_bad_rows, progress: see :func:`limelight.benchmarks.runner.run`.
        batch_size: number of answers per batch. ``engine``: used instead of the auditor, to run elsewhere.
        formats: of the tables, ``csv`` and ``parquet``.
        pages: number of worst answers that get a page. ``maps``: with a relevance map of every word, which costs one
            forward and one backward pass per token in this process.

    Raises:
        DataError: invalid rows, with file and line, before anything is audited.
        SettingError: ``out`` contains another audit, or is being written. MissingExtraError: Parquet without pyarrow.
    """
    check_formats(formats)
    if pages < 0:
        raise SettingError(f"pages must be 0 or more, got {pages}", hint="0 writes none")
    file = Path(answers)
    task = audit_task(file, turns)
    results = run_task(
        task,
        out=out,
        data=file.parent,
        limit=limit,
        shard=shard,
        settings={**auditor.identity(), "file": file.name, "turns": turns},
        engine=engine or Local(auditor, auditor.many, batch_size),
        check=False,
        skip_bad_rows=skip_bad_rows,
        thoughts=auditor.thoughts,
        progress=progress,
    )
    folder = Path(out)
    known = {s.id: s for s in task.load(Folder(file.parent), "answers")}
    audits = audits_of(results.run, known)
    with locked(folder / "results.json.lock"):  # one shard at a time
        write_tables(folder, audits, formats)
        write_pages(folder, audits, results, pages, opened, auditor.adapter if maps else None)
    return results
