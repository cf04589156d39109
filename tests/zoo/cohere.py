"""Cohere's line: parallel residual blocks, LayerNorm without bias, a scale on the logits."""

import transformers as hf

from .base import Model, Tiny, family
from .parts import IMAGE, LEAD, SIGLIP, TAIL, pixels, text

COHERE2 = text(
    "cohere2", num_key_value_heads=2, sliding_window=8, layer_types=["sliding_attention", "full_attention"],
    logit_scale=0.75,
)  # fmt: skip


def cohere2_vision() -> Model:
    return hf.Cohere2VisionForConditionalGeneration(
        hf.Cohere2VisionConfig(
            vision_config=dict(SIGLIP), text_config=dict(COHERE2), image_token_id=IMAGE, alignment_intermediate_size=24
        )
    )


def aya_vision() -> Model:
    return hf.AyaVisionForConditionalGeneration(
        hf.AyaVisionConfig(vision_config=dict(SIGLIP), text_config=dict(COHERE2), image_token_index=IMAGE)
    )


ROWS: list[Tiny] = [
    family(
        name, make, (*LEAD, ("image", 4), *TAIL), {"image": IMAGE}, pixels,
        traits="layernorm gated gqa sliding parallel multipliers", decoder="model.language_model",
        notes="Rotary positions on the sliding layers only. The vision classes do not apply the logit_scale of the "
        "text "
        "config.",
    )
    for name, make in (("cohere2_vision", cohere2_vision), ("aya_vision", aya_vision))
]  # fmt: skip
