"""The decoders of the audio quality table and the settings each may try on dev: at most four trials per decoder."""

from __future__ import annotations

from dataclasses import replace

from bench.quality_decoders import BY_NAME as OF_PICTURES
from bench.quality_decoders import Decoder, grid

NEWER = ("VAF (ClearSight)", "RUDDER", "VISTA", "ILVAD", "AGLA", "FLB", "IAT", "KVSmooth")

DECODERS: tuple[Decoder, ...] = (
    Decoder("greedy", "greedy"),
    Decoder("sampled", "greedy", sample_seeds=(0, 1)),
    Decoder("exact LIME (paper)", "lime", grid(lr=(3e-3, 1e-2)), questions=200),
    Decoder(
        "exact LIME, text positions", "lime", like="exact LIME (paper)", change={"reward": "text"}, control=True,
        captions=False, questions=200,
    ),
    Decoder("cached LIME, margin", "lime-cached", grid(objective=("margin",), lr=(1e-3, 3e-3, 1e-2, 3e-2))),
    Decoder("relevance-contrastive", "relevance-contrastive", grid(alpha=(1.0, 2.0, 4.0, 8.0))),
    Decoder("relevance-contrastive, z", "relevance-contrastive", grid(score=("z",), alpha=(0.5, 1.0, 2.0, 4.0))),
    Decoder("AAD, silence", "aad", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("AAD, no audio", "aad", grid(variant=("absent",), alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("VCD", "vcd", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("M3ID", "m3id", grid(decay=(0.02, 0.1, 0.3, 0.7))),
    Decoder("M3ID, released", "m3id", grid(variant=("released",), decay=(0.02, 0.1, 0.3, 0.7))),
    Decoder("PAI", "pai", grid(alpha=(0.2, 0.5), gamma=(1.1, 1.5))),
    Decoder("PAI, first token too", "pai", grid(first_token=("boosted",), alpha=(0.2, 0.5), gamma=(1.1, 1.5))),
    Decoder("AvisC", "avisc", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("DoLa", "dola", grid(layers=("low", "high"), beta=(0.02, 0.1))),
    *(replace(OF_PICTURES[name], questions=200) for name in NEWER),
    Decoder("reconsider", "reconsider"),
)  # fmt: skip
BY_NAME = {d.name: d for d in DECODERS}
