"""Loading and validating the samples of a run from a task and a data source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limelight.benchmarks.data import BadRow, Folder, Rejected, check_media, missing
from limelight.benchmarks.extras import need
from limelight.benchmarks.task import HubTable, Task
from limelight.errors import DataError, SettingError
from limelight.media.worker import read
from limelight.types import PathLike, Sample


@dataclass(frozen=True)
class Loaded:
    """Samples in order, their splits, facts of the files read, and the texts needed for rescoring.

    ``places``: (split index, position in the split), independent of limits and invalid rows. ``bad``: the skipped rows;
    ``where``: id -> location of its row.
    """

    samples: tuple[Sample, ...]
    places: tuple[tuple[int, int], ...]
    splits: tuple[str, ...]
    facts: Mapping[str, Mapping[str, Any]]
    assets: Mapping[str, str]
    bad: tuple[BadRow, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)


def load(
    task: Task,
    data: PathLike | None = None,
    *,
    splits: Sequence[str] = (),
    limit: int | None = None,
    suffix: str = "",
    seed: int = 0,
    check: bool = True,
    skip_bad_rows: bool = False,
) -> Loaded:
    """Load the samples of a run, validating every row: its fields, label, id and media.

    Args:
        data: a folder; ``"hub"`` for the task's own copies on the Hugging Face Hub, ``"hub:REPO"`` for another copy
            with the same columns (a repository, or a local folder that ``datasets`` can read).
        splits: which of the task's splits; when empty, all whose files exist.
        limit: maximum number of samples per split.
        suffix: appended to every prompt, such as ``" Please answer this question with one word."``.
        seed: seed of the run; each sample's ``meta["seed"]`` is derived from it and the sample's id.
        check: also check that the media files exist.
        skip_bad_rows: skip and count rows that cannot be used or scored, instead of raising.

    Raises:
        SettingError: unknown split, or a limit below 1.
        DataError: files are missing; or rows are invalid, each listed with file and line.
    """
    unknown = [s for s in splits if s not in task.splits]
    if unknown:
        raise SettingError(f"{task.name} has no split {unknown[0]!r}", hint=f"its splits are {list(task.splits)}")
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be at least 1, got {limit}", hint="omit it for all rows")
    rejected = Rejected()
    by_split, facts, assets = (
        _from_hub(task, str(data), splits, rejected)
        if str(data).partition(":")[0] == "hub"
        else _from_folder(task, data, splits, rejected)
    )
    numbered: list[tuple[tuple[int, int], Sample]] = []
    first: dict[str, str] = {}  # id -> location of its row
    there = Media()
    for split, samples in by_split.items():
        before, taken = len(rejected.bad), 0
        for sample in samples:
            at = (
                taken + len(rejected.bad) - before
            )  # bad rows keep their place, so that correcting one changes no other
            if limit is not None and at >= limit:
                break
            problem = (
                f"repeats the id {sample.id!r}, first in {first[sample.id]}" if sample.id in first else
                unaskable(sample) or (there.problem(sample) if check and skip_bad_rows else "")
            )  # fmt: skip
            if problem:
                rejected.add(BadRow(rejected.at, problem, sample.id))
            else:
                first[sample.id] = rejected.at or "this task"
                numbered.append(((task.splits.index(split), at), sample))
                taken += 1
            if at + 1 == limit:
                break
    found = [sample for _, sample in numbered]
    if rejected.bad and not (skip_bad_rows and found):
        raise complaint(task, rejected.bad, len(found))
    if not found:
        raise DataError(f"{task.name} has no rows in {', '.join(by_split)}", hint="check the files of the data folder")
    if check and not skip_bad_rows:
        check_media(found, task.media)
    ready = [replace(s, prompt=s.prompt + suffix, meta={**s.meta, "seed": row_seed(seed, s.id)}) for s in found]
    places = tuple(place for place, _ in numbered)
    return Loaded(tuple(ready), places, tuple(by_split), facts, assets, tuple(rejected.bad), first)


class Media:
    """Cached check of which media files exist."""

    def __init__(self) -> None:
        self._known: dict[Path, bool] = {}

    def problem(self, sample: Sample) -> str:
        """Describe a sample's missing file, or return ""."""
        for kind, items in sample.media.items():
            for path in (Path(x) for x in items if isinstance(x, str | Path)):
                if path not in self._known:
                    self._known[path] = path.is_file()
                if not self._known[path]:
                    return f"its {kind} {path} does not exist"
        return ""


def unaskable(sample: Sample) -> str:
    """Describe why a sample cannot be used (no prompt, an empty medium, target not JSON), or return ""."""
    if not isinstance(sample.prompt, str) or not sample.prompt.strip():
        return f"has no question, but {sample.prompt!r}"
    if empty := [kind for kind, items in sample.media.items() if any(x is None for x in items)]:
        return f"has no {empty[0]}"
    try:
        json.dumps([sample.target, dict(sample.meta)], allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"its target or meta is not valid JSON: {error}"
    return ""


def complaint(task: Task, bad: Sequence[BadRow], good: int) -> DataError:
    """Build the error that lists rows that cannot be used or scored."""
    some = "\n".join([*(f"    {row}" for row in bad[:10]), *(["    ..."] if len(bad) > 10 else [])])
    return DataError(
        f"{len(bad)} of {len(bad) + good} rows of {task.name} are invalid:\n{some}",
        hint="correct them (nothing has been answered yet), or skip them with --skip-bad-rows (skip_bad_rows=True), which "
        "counts them in the results",
    )


def row_seed(seed: int, row_id: str) -> int:
    """Derive a seed in [0, 2**32) from the run's seed and the row's id, independent of order, batch and shard."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:4], "big")


Found = tuple[dict[str, Iterable[Sample]], Mapping[str, Mapping[str, Any]], dict[str, str]]


def _from_folder(task: Task, data: PathLike | None, splits: Sequence[str], rejected: Rejected) -> Found:
    wanted = {s: [n for n in task.files(s) if n.required] for s in task.splits if s in (splits or task.splits)}
    if data is None:
        files = dict.fromkeys(n for needed in wanted.values() for n in needed)
        if files:
            listed = "\n".join(f"    {n}" for n in files)
            raise DataError(f"{task.name} needs data files:\n{listed}", hint="pass --data DIR")
        return {s: task.load(Folder(Path(), rejected=rejected), s) for s in wanted}, {}, {}
    folder = Folder(Path(data), rejected=rejected)
    there = [s for s, needed in wanted.items() if all(folder.locate(n) for n in needed)]
    if not there or (splits and len(there) < len(wanted)):
        lost = [n for s, needed in wanted.items() if s not in there for n in needed if not folder.locate(n)]
        raise missing(folder.root, dict.fromkeys(lost))
    assets = {n.names[0].rpartition("/")[2]: folder.text(n) for n in task.assets if n.required or folder.locate(n)}
    return {s: task.load(folder, s) for s in there}, folder.facts, assets


def _from_hub(task: Task, data: str, splits: Sequence[str], rejected: Rejected) -> Found:
    without = [s for s in splits if s not in task.hub]
    if not task.hub or without:
        raise SettingError(
            f"{task.name}{' ' + without[0] if without else ''} has no complete copy on the Hub",
            hint=f"pass --data DIR; splits on the Hub: {list(task.hub)}",
        )
    found: dict[str, Iterable[Sample]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for split in (s for s in task.hub if s in (splits or task.hub)):
        table = task.hub[split]
        rows, fact = hub_rows(table, data.partition(":")[2] or table.repo)
        facts[f"{fact['repo']}:{table.name or 'default'}:{table.split}"] = fact
        found[split] = converted(table, rows, rejected)
    return found, facts, {}


def converted(table: HubTable, rows: Sequence[Mapping[str, Any]], rejected: Rejected) -> Iterator[Sample]:
    """Yield samples of the rows in the split; invalid rows (such as an image that cannot be decoded) go to ``rejected``."""
    features = getattr(rows, "features", {})
    pictures = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    for number in range(len(rows)):
        with rejected.row(f"{table.repo}, {table.split}, row {number}"):
            row = dict(rows[number])
            for name in pictures:
                if isinstance(row[name], Mapping):
                    row[name] = read("image", row[name], group="bench")
            if (sample := table.convert(row, number)) is not None:
                yield sample


def hub_rows(table: HubTable, repo: str) -> tuple[Any, dict[str, Any]]:
    """Read a split of a Hub dataset with ``datasets`` (media as bytes), and its fingerprint and row count."""
    datasets = need("datasets", "bench")
    try:
        rows = datasets.load_dataset(repo, table.name, split=table.split)
    except Exception as error:
        raise DataError(
            f"datasets could not read {repo} (configuration {table.name}, split {table.split}): {error}",
            hint="check the name and your network, or pass --data DIR",
        ) from error
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Audio):
            rows = rows.cast_column(name, datasets.Audio(decode=False))
    columns = {k: str(v) for k, v in rows.features.items()}
    digest = hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()
    fingerprint = rows._fingerprint
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows, {"repo": repo, "fingerprint": fingerprint, "rows": len(rows), "columns_sha256": digest}
