"""From a task and a data source to the samples of a run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from limelight.benchmarks.data import Folder, check_media, missing
from limelight.benchmarks.extras import need
from limelight.benchmarks.task import HubTable, Task
from limelight.errors import DataError, SettingError
from limelight.types import PathLike, Sample


@dataclass(frozen=True)
class Loaded:
    """Samples in order, the splits they come from, facts of the files read, and the texts that scoring needs again.

    ``places`` are (number of the split, position in it): a limit does not change them.
    """

    samples: tuple[Sample, ...]
    places: tuple[tuple[int, int], ...]
    splits: tuple[str, ...]
    facts: Mapping[str, Mapping[str, Any]]
    assets: Mapping[str, str]


def load(
    task: Task,
    data: PathLike | None = None,
    *,
    splits: Sequence[str] = (),
    limit: int | None = None,
    suffix: str = "",
    seed: int = 0,
    check: bool = True,
) -> Loaded:
    """The samples of a run.

    Args:
        data: a folder; ``"hub"`` for the task's own copies on the Hugging Face Hub, ``"hub:REPO"`` for another copy
            with the same columns (a repository, or a local folder that ``datasets`` can read).
        splits: which of the task's splits; all whose files are there when empty.
        limit: at most so many samples a split.
        suffix: appended to every prompt, such as ``" Please answer this question with one word."``.
        seed: of the run; every sample gets its own in ``meta["seed"]``, from this and its id alone.
        check: raise when pictures or sounds are missing.
    """
    unknown = [s for s in splits if s not in task.splits]
    if unknown:
        raise SettingError(f"{task.name} has no split {unknown[0]!r}", hint=f"its splits are {list(task.splits)}")
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be at least 1, got {limit}", hint="leave it out for all rows")
    by_split, facts, assets = (
        _from_hub(task, str(data), splits) if str(data).partition(":")[0] == "hub" else _from_folder(task, data, splits)
    )
    numbered = [
        ((task.splits.index(split), k), sample)
        for split, samples in by_split.items()
        for k, sample in enumerate(islice(samples, limit))
    ]
    found = [sample for _, sample in numbered]
    if twice := [i for i, n in Counter(s.id for s in found).items() if n > 1]:
        raise DataError(f"{task.name} has the id {twice[0]!r} twice", hint="the question file repeats a row")
    if not found:
        raise DataError(f"{task.name} has no rows in {', '.join(by_split)}", hint="check the files of the data folder")
    if check:
        check_media(found, task.media)
    ready = [replace(s, prompt=s.prompt + suffix, meta={**s.meta, "seed": row_seed(seed, s.id)}) for s in found]
    return Loaded(tuple(ready), tuple(place for place, _ in numbered), tuple(by_split), facts, assets)


def row_seed(seed: int, row_id: str) -> int:
    """A seed in [0, 2**32) from the run's seed and the row's id: the same in any order, batch or shard."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:4], "big")


Found = tuple[dict[str, Iterable[Sample]], Mapping[str, Mapping[str, Any]], dict[str, str]]


def _from_folder(task: Task, data: PathLike | None, splits: Sequence[str]) -> Found:
    wanted = {s: [n for n in task.files(s) if n.required] for s in task.splits if s in (splits or task.splits)}
    if data is None:
        files = dict.fromkeys(n for needed in wanted.values() for n in needed)
        if files:
            listed = "\n".join(f"    {n}" for n in files)
            raise DataError(f"{task.name} reads files; it looks for\n{listed}", hint="pass --data DIR")
        return {s: task.load(Folder(Path()), s) for s in wanted}, {}, {}
    folder = Folder(Path(data))
    there = [s for s, needed in wanted.items() if all(folder.locate(n) for n in needed)]
    if not there or (splits and len(there) < len(wanted)):
        lost = [n for s, needed in wanted.items() if s not in there for n in needed if not folder.locate(n)]
        raise missing(folder.root, dict.fromkeys(lost))
    assets = {n.names[0].rpartition("/")[2]: folder.text(n) for n in task.assets}
    return {s: task.load(folder, s) for s in there}, folder.facts, assets


def _from_hub(task: Task, data: str, splits: Sequence[str]) -> Found:
    without = [s for s in splits if s not in task.hub]
    if not task.hub or without:
        raise SettingError(
            f"{task.name}{' ' + without[0] if without else ''} has no copy on the Hub that holds all it needs",
            hint=f"pass --data DIR; on the Hub are {list(task.hub)}",
        )
    found: dict[str, Iterable[Sample]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for split in (s for s in task.hub if s in (splits or task.hub)):
        table = task.hub[split]
        rows, fact = hub_rows(table, data.partition(":")[2] or table.repo)
        facts[f"{fact['repo']}:{table.name or 'default'}:{table.split}"] = fact
        found[split] = converted(table, rows)
    return found, facts, {}


def converted(table: HubTable, rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    """Samples of the rows that belong to the split."""
    return (s for i, row in enumerate(rows) if (s := table.convert(row, i)) is not None)


def hub_rows(table: HubTable, repo: str) -> tuple[Any, dict[str, Any]]:
    """A split of a Hub dataset by ``datasets`` (pictures as PIL, sounds as bytes), and its fingerprint and row count."""
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
    return rows, {"repo": repo, "fingerprint": rows._fingerprint, "rows": len(rows), "columns_sha256": digest}
