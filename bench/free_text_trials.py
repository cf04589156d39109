"""Settings that each decoder may try on dev for captions and transcripts: six trials a decoder, of those that have settings."""

from __future__ import annotations

from typing import Any

from bench.quality_decoders import grid

CUTS = (0.02, 0.1)
_CONTRAST = grid(alpha=(1.0, 2.0, 3.0), beta=CUTS)
_M3ID = (0.1, 0.3, 0.7)
_PAI = tuple(
    {"alpha": alpha, "gamma": gamma, "beta": beta}
    for alpha, gamma in ((0.2, 1.5), (0.2, 3.0), (0.5, 1.5))
    for beta in CUTS
)

# By name of the quality tables' rows. The published setting is among each decoder's trials where it is a setting of one.
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "greedy": ({},),
    "sampled": ({},),
    "exact LIME (paper)": grid(lr=(3e-4, 3e-3, 1e-2), steps=(4, 7)),
    "cached LIME, margin": grid(objective=("margin",), lr=(1e-3, 3e-3, 1e-2), updates=(1, 3)),
    "relevance-contrastive": grid(alpha=(4.0, 8.0, 16.0), beta=CUTS),
    "relevance-contrastive, z": grid(score=("z",), alpha=(1.0, 2.0, 4.0), beta=CUTS),
    "VCD": _CONTRAST,
    "ICD": _CONTRAST,
    "M3ID": grid(decay=_M3ID, beta=CUTS),
    "M3ID, released": grid(variant=("released",), decay=_M3ID, beta=CUTS),
    "PAI": _PAI,
    "PAI, first token too": tuple({"first_token": "boosted", **row} for row in _PAI),
    "AvisC": _CONTRAST,
    "AAD, silence": _CONTRAST,
    "AAD, no audio": tuple({"variant": "absent", **row} for row in _CONTRAST),
    "DoLa": grid(layers=("low", "high"), beta=(0.02, 0.1, 0.3)),
    "DeCo": grid(alpha=(0.3, 0.6, 1.0), top_p=(0.9, 0.99)),
    "MemVR": grid(ratio=(0.12, 0.25, 0.5), threshold=(0.6, 0.75)),
    "VAF (ClearSight)": grid(enhance=(1.15, 1.5, 2.0), suppress=(0.95, 0.5)),
    "RUDDER": grid(alpha=(0.5, 1.0, 2.0), gate=("beta", "constant")),
    "VISTA": grid(strength=(0.05, 0.17, 0.4), alpha=(0.0, 0.3)),
    "ILVAD": grid(beta=(0.3, 1.0, None), tau=(2.0, 5.0)),
    "AGLA": grid(alpha=(0.5, 1.0, 2.0), kept=(0.5, 0.8)),
    "FLB": grid(gamma=(0.3, 1.0, 3.0), decay=(0.05, 0.3)),
    "IAT": grid(alpha=(0.2, 0.4, 0.8, 1.6, 3.2, 6.4)),
    "KVSmooth": grid(strength=(0.1, 0.5, 0.9), radius=(0.0, 0.2)),
    "reconsider": grid(threshold=(2.5, 3.25, 4.0), margin=(0.5, 1.5)),
    "LRP beam": ({},),
}
