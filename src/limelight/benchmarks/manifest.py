"""What a run is: the settings that must not change while it is resumed, and the versions it ran under."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from limelight.benchmarks.rowlog import write_json
from limelight.errors import DataError, SettingError

PACKAGES = ("limelight", "torch", "transformers", "tokenizers", "numpy", "pillow", "soundfile", "datasets", "textblob",
            "nltk", "jiwer")  # fmt: skip
FORMAT = 1


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python, the platform and the libraries a number may depend on; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def git_hash() -> str | None:
    """The commit the library runs from, with ``+changes`` when the tree differs; None outside a repository."""
    here = Path(__file__).resolve().parent
    try:
        run = [
            subprocess.run(
                ["git", *args], cwd=here, capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0] + ("+changes" if run[1] else "")


def session() -> dict[str, Any]:
    """One start of a run: when, and under which versions."""
    return {"started": datetime.now(UTC).isoformat(timespec="seconds"), "git": git_hash(), "versions": versions()}


def part_name(stem: str, shard: tuple[int, int], suffix: str) -> str:
    """``rows.jsonl``, or ``rows.1of4.jsonl`` for the second of four shards."""
    return f"{stem}{suffix}" if shard[1] == 1 else f"{stem}.{shard[0]}of{shard[1]}{suffix}"


@dataclass(frozen=True)
class Start:
    """A run about to start or resume: the settings that must agree with what lies in the folder, and those that may not.

    A limit may grow: ``limit`` is the number of rows a split, None for all. Data may be corrected: answers are kept
    with what was asked, so what the files hold now is compared question by question (:mod:`limelight.benchmarks.resume`).
    """

    identity: Mapping[str, Any]
    shard: tuple[int, int]
    total: int
    limit: int | None
    parser: str
    thoughts: Sequence[Sequence[str]] | None = None
    bad_rows: Sequence[str] = ()

    def check(self, folder: Path) -> None:
        """Raise ``SettingError`` when the folder holds a run with other settings, one that went further, or answers of
        nobody knows which run."""
        for rows in folder.glob("rows*.jsonl"):
            if rows.stat().st_size and not rows.with_name(f"run{rows.name[4:-1]}").exists():
                raise SettingError(
                    f"{folder} holds the answers {rows.name}, but not run{rows.name[4:-1]}, which says what they answer",
                    hint="put that file back, or use another --out: answers of another run must not mix with these",
                )
        for path in manifests(folder):
            there = read_manifest(path)
            compare(path, settled(there["identity"]), settled(self._identity()))
            if self.limit is not None and (there["limit"] is None or there["limit"] > self.limit):
                raise SettingError(
                    f"{folder} holds a run of {there['limit'] or 'all'} rows a split, and the limit is now {self.limit}",
                    hint="leave the limit as it was or raise it, or use another --out",
                )

    def write(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the manifest of this shard, with this session added; ``about`` says more of the session."""
        path = folder / part_name("run", self.shard, ".json")
        sessions = read_manifest(path)["sessions"] if path.exists() else []
        write_json(
            path,
            {
                "format": FORMAT,
                "identity": self._identity(),
                "shard": list(self.shard),
                "total": self.total,
                "limit": self.limit,
                "parser": self.parser,
                "thoughts": None if self.thoughts is None else [list(pair) for pair in self.thoughts],
                "bad_rows": list(self.bad_rows),
                "sessions": [*sessions, {**session(), **(about or {})}],
            },
        )

    def _identity(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps({**self.identity, "shards": self.shard[1]}, allow_nan=False))
        return found


def manifests(folder: Path) -> list[Path]:
    """Manifests of a run's shards."""
    return sorted(p for p in folder.glob("run*.json") if p.name == "run.json" or "of" in p.name)


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="point at a folder that limelight bench wrote"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(
            f"{path} is not a run of format {FORMAT}", hint="it was written by another version of limelight"
        )
    lost = [k for k, kind in _KEYS.items() if not isinstance(found.get(k), kind)]
    if lost:
        raise DataError(
            f"{path} has no {', '.join(lost)}", hint="it was changed by hand: put it back as it was written"
        )
    return found


_KEYS: Mapping[str, type] = {"identity": dict, "shard": list, "total": int, "sessions": list}


def settled(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change in a run: all but the hashes of its data."""
    return {k: v for k, v in identity.items() if k != "data"}


def compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ``SettingError`` that lists every setting in which a run to resume differs from what is asked for."""
    lines = [f"    {k}: {a!r} there, {b!r} now" for k, a, b in differences(old, new)]
    if lines:
        raise SettingError(
            f"{path.parent} holds a run with other settings:\n" + "\n".join(lines),
            hint="use the same settings to resume it, another --out for a new run, or remove that folder",
        )


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """(key path, old, new) of every leaf in which two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({str(k) for m in (old, new) for k in m})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{at}.{k}" if at else str(k))]
    return [] if old == new else [(at, old, new)]
