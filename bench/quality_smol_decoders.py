"""The decoders of smol-vision's tables and the settings each may try on dev: at most four trials per decoder."""

from __future__ import annotations

from bench.quality_decoders import Decoder, grid

RAISED = "greedy, yes raised"  # by a constant chosen on dev: what a shift of the threshold alone does

DECODERS: tuple[Decoder, ...] = (
    Decoder("greedy", "greedy"),
    Decoder(RAISED, "greedy", tuple({"logits": x} for x in (0.5, 1.0, 2.0, 4.0)), control=True, captions=False),
    Decoder("sampled", "greedy", sample_seeds=(0,)),
    Decoder("exact LIME (paper)", "lime", grid(lr=(3e-4, 3e-3)), captions=False, questions=30, few_dev=10),
    Decoder("cached LIME, margin", "lime-cached", grid(objective=("margin",), lr=(3e-4, 1e-3, 3e-3, 1e-2))),
    Decoder("relevance-contrastive", "relevance-contrastive", grid(alpha=(1.0, 2.0, 4.0, 8.0))),
    Decoder("relevance-contrastive, z", "relevance-contrastive", grid(score=("z",), alpha=(0.5, 1.0, 2.0, 4.0))),
    Decoder("VCD", "vcd", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
    Decoder("M3ID", "m3id", grid(decay=(0.02, 0.1, 0.3, 0.7))),
    Decoder("PAI", "pai", grid(alpha=(0.2, 0.5), gamma=(1.1, 1.5))),
    Decoder("AvisC", "avisc", grid(alpha=(0.5, 1.0, 2.0, 3.0))),
)
BY_NAME = {d.name: d for d in DECODERS}
