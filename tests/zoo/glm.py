"""GLM's line: M-RoPE, sandwich norms, gate and up fused into one matrix."""

import transformers as hf

from .base import Model, Tiny, family
from .parts import IMAGE, MROPE, VIDEO, text
from .qwen import PROMPT, TOKENS, image

VISION = dict(
    depth=2, hidden_size=16, intermediate_size=24, num_heads=2, image_size=16, patch_size=4, spatial_merge_size=2,
    temporal_patch_size=2, out_hidden_size=32,
)  # fmt: skip
IDS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=3, image_end_token_id=4, video_start_token_id=8,
    video_end_token_id=9,
)  # fmt: skip
HALF = dict(
    num_key_value_heads=2, head_dim=16, rope_parameters=MROPE | {"partial_rotary_factor": 0.5}
)  # GLM turns half of each head
WIDE = dict(
    hidden_size=64, num_key_value_heads=2, rope_parameters=MROPE | {"partial_rotary_factor": 0.5}
)  # GLM-4V has no head_dim: hidden / heads = 16


def glm4v() -> Model:
    return hf.Glm4vForConditionalGeneration(
        hf.Glm4vConfig(vision_config=VISION | {"out_hidden_size": 64}, text_config=text("glm4v_text", **WIDE), **IDS)
    )


def glm46v() -> Model:
    vision = VISION | {"model_type": "glm4v_vision", "out_hidden_size": 64}
    words = text("glm4v_text", **WIDE)
    return hf.Glm46VForConditionalGeneration(hf.Glm46VConfig(vision_config=vision, text_config=words, **IDS))


def glm4v_moe() -> Model:
    experts = dict(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
        first_k_dense_replace=1, routed_scaling_factor=1.5,
    )  # fmt: skip
    return hf.Glm4vMoeForConditionalGeneration(
        hf.Glm4vMoeConfig(vision_config=dict(VISION), text_config=text("glm4v_moe_text", **HALF, **experts), **IDS)
    )


def glm_ocr() -> Model:
    return hf.GlmOcrForConditionalGeneration(
        hf.GlmOcrConfig(vision_config=dict(VISION), text_config=text("glm_ocr_text", **HALF), **IDS)
    )


ROWS: list[Tiny] = [
    family(
        "glm4v", glm4v, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated fused_gate_up gqa bias mrope sandwich", decoder="model.language_model",
    ),
    family(
        "glm46v", glm46v, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated fused_gate_up gqa bias mrope sandwich", decoder="model.language_model",
    ),
    family(
        "glm4v_moe", glm4v_moe, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated gqa bias mrope moe", decoder="model.language_model",
        notes="First layer dense, second a mixture with a shared expert (GLM-4.5V).",
    ),
    family(
        "glm_ocr", glm_ocr, PROMPT, TOKENS, image, types="mm_token_type_ids",
        traits="rmsnorm gated fused_gate_up gqa mrope sandwich", decoder="model.language_model",
    ),
]  # fmt: skip
