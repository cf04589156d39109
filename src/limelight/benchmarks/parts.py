"""Splitting the rows of a benchmark that has no dev split: whole images or clips, by a hash of their names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from limelight.benchmarks.loading import Loaded
from limelight.errors import DataError, SettingError
from limelight.types import Sample

PARTS = ("dev", "test")


@dataclass(frozen=True)
class Part:
    """The dev or the test part of a split: whole clusters (images, clips), by a hash of the cluster's name.

    ``share``: the share of clusters in dev. A row's part depends on its cluster alone, so it is the same in every run, and no
    image is in both parts.
    """

    name: str
    share: float

    def __post_init__(self) -> None:
        if self.name not in PARTS:
            raise SettingError(f"unknown part {self.name!r}", hint=f"one of {list(PARTS)}")
        if not 0 < self.share < 1:
            raise SettingError(f"the share of dev must be between 0 and 1, got {self.share}", hint="for example 0.3")

    def has(self, sample: Sample) -> bool:
        cluster = str(sample.meta.get("cluster", sample.id))
        position = int.from_bytes(hashlib.sha256(f"part:{cluster}".encode()).digest()[:6], "big") / 2**48
        return (position < self.share) is (self.name == "dev")

    def of(self, loaded: Loaded) -> Loaded:
        """Return the samples of the part; raises ``DataError`` where there are none."""
        kept = [k for k, s in enumerate(loaded.samples) if self.has(s)]
        if not kept:
            raise DataError(
                f"the {self.name} part has none of {len(loaded.samples)} rows", hint="use more rows, or another share"
            )
        places = tuple(loaded.places[k] for k in kept)
        return replace(loaded, samples=tuple(loaded.samples[k] for k in kept), places=places)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dev_share": self.share}
