"""The decoders of the quality table and the settings each may try on dev: at most four trials per decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from limelight.decoding.registry import strategy
from limelight.decoding.strategy import Strategy


@dataclass(frozen=True)
class Decoder:
    """A row of the table. ``grid``: settings to choose from on dev; ``like``: another row whose chosen settings are used.
    ``questions``: fewer questions per cell, for rows that cost a hundred times as much; ``few_dev``: for them, fewer per cell and
    trial on dev; ``few_captions``: for them, captions per
    set and trial on dev, and per set on test, in :mod:`bench.free_text`."""

    name: str
    method: str
    grid: tuple[dict[str, Any], ...] = ({},)
    like: str = ""
    change: dict[str, Any] = field(default_factory=dict)
    sample_seeds: tuple[int, ...] = ()
    control: bool = False
    captions: bool = True
    questions: int | None = None
    few_dev: int | None = None
    few_captions: tuple[int, int] | None = None

    def build(self, settings: dict[str, Any]) -> Strategy:
        return strategy(self.method, **{**settings, **self.change})


def grid(**values: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = [{}]
    for name, choices in values.items():
        rows = [{**row, name: choice} for row in rows for choice in choices]
    return tuple(rows)


DECODERS: tuple[Decoder, ...] = (
    Decoder("greedy", "greedy"),
    Decoder("sampled", "greedy", sample_seeds=(0, 1, 2)),
    Decoder("exact LIME (paper)", "lime", grid(lr=(3e-4, 3e-3, 1e-2)), few_captions=(20, 50)),
    Decoder("exact LIME, text positions", "lime", like="exact LIME (paper)", change={"reward": "text"}, control=True, captions=False, questions=300),
    Decoder("random direction, equal norm", "lime", like="exact LIME (paper)", change={"direction": "random"}, control=True, captions=False, questions=300),
    Decoder("exact LIME, margin", "lime", grid(objective=("margin",), lr=(1e-3, 3e-3, 1e-2)), captions=False, questions=300),
    Decoder("cached LIME, paper weights", "lime-cached", grid(objective=("paper",), rule=("adam",), lr=(6e-3, 6e-2)), captions=False, questions=300),
    Decoder("cached LIME, difference", "lime-cached", grid(objective=("difference",), lr=(1e-3, 3e-3, 1e-2, 3e-2))),
    Decoder("cached LIME, margin", "lime-cached", grid(objective=("margin",), lr=(1e-3, 3e-3, 1e-2, 3e-2))),
    Decoder("cached LIME, margin, 3 updates", "lime-cached", grid(objective=("margin",), updates=(3,), lr=(1e-3, 3e-3, 1e-2)), captions=False, questions=300),
    Decoder(
        "cached LIME, margin, gated", "lime-cached", like="cached LIME, margin",
        change={"gate": "uncertain", "threshold": 0.95},
    ),
    Decoder("cached LIME, margin, text positions", "lime-cached", like="cached LIME, margin", change={"reward": "text"}, control=True, captions=False, questions=300),
    Decoder("relevance-contrastive", "relevance-contrastive", grid(alpha=(1.0, 2.0, 4.0, 8.0))),
    Decoder("relevance-contrastive, z", "relevance-contrastive", grid(score=("z",), alpha=(0.5, 1.0, 2.0, 4.0))),
    Decoder("relevance-contrastive, CP-LRP", "relevance-contrastive", grid(composite=("cp-lrp",), alpha=(1.0, 2.0, 4.0, 8.0))),
    Decoder("VCD", "vcd", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("ICD", "icd", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("M3ID", "m3id", grid(decay=(0.02, 0.1, 0.3, 0.7))),
    Decoder("M3ID, released", "m3id", grid(variant=("released",), decay=(0.02, 0.1, 0.3, 0.7))),
    Decoder("PAI", "pai", grid(alpha=(0.2, 0.5), gamma=(1.1, 1.5))),
    Decoder("PAI, first token too", "pai", grid(first_token=("boosted",), alpha=(0.2, 0.5), gamma=(1.1, 1.5))),
    Decoder("AvisC", "avisc", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("DoLa", "dola", grid(layers=("low", "high"), beta=(0.02, 0.1))),
    Decoder("DeCo", "deco", grid(alpha=(0.15, 0.3, 0.6, 1.0))),
    Decoder("MemVR", "memvr", grid(ratio=(0.06, 0.12, 0.25, 0.5))),
    Decoder("VAF (ClearSight)", "vaf", grid(enhance=(1.15, 1.5), suppress=(0.95, 0.5)), questions=300),
    Decoder("RUDDER", "rudder", grid(alpha=(0.5, 1.0, 2.0, 4.0)), questions=300),
    Decoder("VISTA", "vista", grid(strength=(0.01, 0.17), alpha=(0.0, 0.3)), questions=300),
    Decoder("ILVAD", "ilvad", grid(alpha=(2.5, 5.0), tau=(2.0, 5.0)), questions=300),
    Decoder("AGLA", "agla", grid(alpha=(1.0, 2.0), kept=(0.5, 0.8)), questions=300),
    # They leave a one-word answer as it is: yes/no questions cannot choose their settings, captions do (bench.free_text).
    Decoder("FLB", "flb", questions=300),
    Decoder("IAT", "iat", questions=300),
    Decoder("KVSmooth", "kvsmooth", questions=300),
    Decoder("OPERA", "opera", questions=100, captions=False),
    Decoder("reconsider", "reconsider"),
    Decoder("LRP beam", "lrp-beam", questions=100, captions=False, few_captions=(0, 50)),
)  # fmt: skip
BY_NAME = {d.name: d for d in DECODERS}
