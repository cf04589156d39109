"""The manifest of a run: the settings that must match when it is resumed, and the versions it ran under."""

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
    """Return versions of Python, the platform and the libraries that scores may depend on; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def git_hash() -> str | None:
    """Return the library's git commit, with ``+changes`` when the working tree differs; None outside a repository."""
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
    """Describe one session of a run: its start time and versions."""
    return {"started": datetime.now(UTC).isoformat(timespec="seconds"), "git": git_hash(), "versions": versions()}


def part_name(stem: str, shard: tuple[int, int], suffix: str) -> str:
    """Return a shard's file name: ``rows.jsonl``, or ``rows.1of4.jsonl`` for the second of four shards."""
    return f"{stem}{suffix}" if shard[1] == 1 else f"{stem}.{shard[0]}of{shard[1]}{suffix}"


@dataclass(frozen=True)
class Start:
    """A run about to start or resume: settings that must match those in the folder, and settings that may differ.

    ``limit``, the number of rows per split (None: all), may grow. Data may be corrected: answers are stored with their
    inputs, so the current files are compared question by question (:mod:`limelight.benchmarks.resume`).
    """

    identity: Mapping[str, Any]
    shard: tuple[int, int]
    total: int
    limit: int | None
    parser: str
    thoughts: Sequence[Sequence[str]] | None = None
    bad_rows: Sequence[str] = ()

    def check(self, folder: Path) -> None:
        """Raise ``SettingError`` when the folder has a run with different settings or a larger limit, or answers without a
        manifest."""
        for rows in folder.glob("rows*.jsonl"):
            if rows.stat().st_size and not rows.with_name(f"run{rows.name[4:-1]}").exists():
                raise SettingError(
                    f"{folder} has the answers {rows.name}, but not their manifest run{rows.name[4:-1]}",
                    hint="restore that file, or use another --out: answers of different runs must not be mixed",
                )
        for path in manifests(folder):
            there = read_manifest(path)
            compare(path, settled(there["identity"]), settled(self._identity()))
            if self.limit is not None and (there["limit"] is None or there["limit"] > self.limit):
                raise SettingError(
                    f"{folder} has a run of {there['limit'] or 'all'} rows per split, but the limit is now {self.limit}",
                    hint="keep or raise the limit, or use another --out",
                )

    def write(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write this shard's manifest, with this session added; ``about``: further facts about the session."""
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
    """Return the manifest paths of a run's shards."""
    return sorted(p for p in folder.glob("run*.json") if p.name == "run.json" or "of" in p.name)


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="pass a folder written by limelight bench") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(
            f"{path} is not a run of format {FORMAT}", hint="it was written by another version of limelight"
        )
    lost = [k for k, kind in _KEYS.items() if not isinstance(found.get(k), kind)]
    if lost:
        raise DataError(f"{path} has no {', '.join(lost)}", hint="it was edited by hand: restore the original")
    return found


_KEYS: Mapping[str, type] = {"identity": dict, "shard": list, "total": int, "sessions": list}


def settled(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must not change in a run: all except the hashes of its data."""
    return {k: v for k, v in identity.items() if k != "data"}


def compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ``SettingError`` listing every setting in which the stored run differs from the requested one."""
    lines = [f"    {k}: was {a!r}, now {b!r}" for k, a, b in differences(old, new)]
    if lines:
        raise SettingError(
            f"{path.parent} has a run with different settings:\n" + "\n".join(lines),
            hint="use the same settings to resume it, use another --out for a new run, or remove that folder",
        )


def differences(old: Any, new: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Return (key path, old, new) of every leaf in which two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({str(k) for m in (old, new) for k in m})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{at}.{k}" if at else str(k))]
    return [] if old == new else [(at, old, new)]
