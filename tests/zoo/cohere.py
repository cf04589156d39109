"""Cohere's line: parallel residual blocks, LayerNorm without bias, a scale on the logits."""

from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
)

from .base import Tiny, family
from .parts import IMAGE, LEAD, SIGLIP, TAIL, pixels, text

COHERE2 = text(
    "cohere2", num_key_value_heads=2, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
    logit_scale=0.75,
)  # fmt: skip


def cohere2_vision() -> Cohere2VisionForConditionalGeneration:
    return Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=dict(SIGLIP), text_config=dict(COHERE2), image_token_id=IMAGE, alignment_intermediate_size=24
        )
    )


def aya_vision() -> AyaVisionForConditionalGeneration:
    return AyaVisionForConditionalGeneration(
        AyaVisionConfig(vision_config=dict(SIGLIP), text_config=dict(COHERE2), image_token_index=IMAGE)
    )


LOUD = {"embed_tokens": 1.4}  # against the logit scale
ROWS: list[Tiny] = [
    family(
        name, make, (*LEAD, ("image", 4), *TAIL), {"image": IMAGE}, pixels,
        traits="layernorm gated gqa sliding parallel multipliers", decoder="model.language_model", gains=LOUD,
        notes="Rotary positions on the sliding layers only.",
    )
    for name, make in (("cohere2_vision", cohere2_vision), ("aya_vision", aya_vision))
]  # fmt: skip
